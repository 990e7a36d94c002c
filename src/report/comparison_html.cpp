#include "report/comparison_html.h"

#include <cmath>

#include "report/html_parts.h"
#include "report/markup.h"

namespace kla::report {
namespace {

std::string half_width(const std::optional<double>& value) {
  return value ? "± " + format_fixed(*value, 4) : "withheld below 3 seeds";
}

std::string row_of(const Summary& summary, const VariantResult& v, bool is_base) {
  std::string row =
      element("td", render_swatch(summary.variants[v.variant].style) + escape(v.name));
  row += cell(std::to_string(v.finished) + " of " + std::to_string(v.runs));
  row += v.finished == 0
             ? cell("–") + cell("–")
             : value_with_note(format_fixed(v.loss.mean, 4), half_width(v.loss.half_width)) +
                   cell(format_fixed(std::exp(v.loss.mean), 2));
  const MeanInterval& d = v.effect.alone;
  row += is_base || v.differences.empty()
             ? cell("–")
             : value_with_note((d.mean > 0 ? "+" : "") + format_fixed(d.mean, 4),
                               half_width(d.half_width));
  row += cell(v.verdict, "words");
  return row + cell(format_short(v.parameters)) + cell(format_short(v.state_values)) +
         cell(format_short(v.flops_per_token));
}

}  // namespace

std::string comparison_table(const Summary& summary, const Comparison& comparison) {
  if (!comparison.over_seeds()) return "";
  const std::string& base = comparison.variants[comparison.base].name;
  std::string rows;
  for (const VariantResult& v : comparison.variants)
    rows += element("tr", row_of(summary, v, &v == &comparison.variants[comparison.base]));
  std::string out = table(head_cell("variant") + head_cell("seeds", "finished") +
                              head_cell("mean val loss", "nats, 95 % over seeds") +
                              head_cell("perplexity", "of the mean loss") +
                              head_cell("minus " + base, "nats, paired, 95 %") +
                              head_cell("verdict", "", "text") + head_cell("parameters") +
                              head_cell("state", "values") + head_cell("FLOP", "a token"),
                          rows);
  out += paragraph("Metric: " + comparison.metric + ". " + comparison_statement(comparison));
  out += paragraph(
      "State: the matrices S of all layers, of one sequence. FLOP: matrix products of forward and "
      "backward, counted from the shapes of every op.");
  std::string notes;
  for (const std::string& note : comparison.notes) notes += text_element("li", note);
  return out + (notes.empty() ? "" : element("ul", notes, {{"class", "notes"}}));
}

}  // namespace kla::report
