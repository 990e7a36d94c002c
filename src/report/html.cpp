#include "report/html.h"

#include <algorithm>
#include <cmath>

#include "report/charts.h"
#include "report/comparison_charts.h"
#include "report/comparison_html.h"
#include "report/html_parts.h"
#include "report/markup.h"
#include "report/probe_charts.h"
#include "report/scale.h"
#include "report/statistics.h"
#include "report/style.h"
#include "report/summary.h"
#include "version.h"

namespace kla::report {
namespace {

std::string run_cell(const Summary& summary, const RunSummary& run) {
  return element("td", render_swatch(summary.variants[run.variant].style) + escape(run.label));
}

// ------------------------------------------------------------------------------------- sections

std::string title_of(const Summary& summary) {
  std::string names = summary.variants.front().name;
  for (size_t v = 1; v < summary.variants.size(); ++v)
    names += (v + 1 == summary.variants.size() ? " and " : ", ") + summary.variants[v].name;
  return names;
}

// What one seed can and cannot show.
std::string seed_statement(const Summary& summary) {
  size_t fewest = summary.variants.front().seeds, most = fewest;
  for (const Variant& variant : summary.variants) {
    fewest = std::min(fewest, variant.seeds);
    most = std::max(most, variant.seeds);
  }
  if (fewest >= 3) return "";
  if (most == 1)
    return paragraph(
        "One seed per variant: this page is a demonstration, not a comparison. Two runs that "
        "differ in nothing but the seed differ in perplexity as well, and a single run of each "
        "variant does not tell that difference from an effect. Three seeds or more of each "
        "variant give intervals over seeds.",
        "caution");
  return paragraph(
      "Some variants have fewer than three seeds: for them no interval over seeds is given, and "
      "a difference to them is a demonstration, not a comparison.",
      "caution");
}

std::string summary_table(const Summary& summary) {
  std::string rows;
  for (const RunSummary& run : summary.runs) {
    const EvalRow* eval = headline(run);
    std::string row = run_cell(summary, run);
    row += cell(format_short(run.parameters)) + cell(format_short(run.tokens));
    row += cell(format_exact(run.steps)) + cell(format_fixed(run.train_loss, 3));
    row += eval ? cell(format_fixed(eval->loss, 3)) + cell(format_fixed(std::exp(eval->loss), 2)) +
                      cell(format_fixed(eval->bits_per_byte, 3))
                : cell("–") + cell("–") + cell("–");
    row += cell(format_short(run.tok_s)) + cell(format_time(run.wall_s));
    row += cell(std::isnan(run.skipped) ? "–" : format_fixed(run.skipped, 0));
    row += cell(run.git.empty() ? "–" : run.git.substr(0, 20), "code");
    rows += element("tr", row);
  }
  return table(head_cell("run") + head_cell("parameters") + head_cell("tokens") +
                   head_cell("steps") + head_cell("train loss", "nats") +
                   head_cell("val loss", "nats") + head_cell("val ppl") + head_cell("bits/byte") +
                   head_cell("tokens/s") + head_cell("wall time") + head_cell("skipped", "steps") +
                   head_cell("git"),
               rows);
}

std::string run_notes(const std::vector<RunData>& runs, const Summary& summary) {
  std::string items;
  for (size_t i = 0; i < runs.size(); ++i) {
    const RunSummary& run = summary.runs[i];
    const RunState state = state_of(runs[i].status);
    const std::string why = value_of(runs[i].status, "why");
    if (state == RunState::failed || state == RunState::diverged)
      items += text_element("li", run.label + ": this run " + name_of(state) + ": " + why);
    else if (!run.state.empty() && run.state != "finished")
      items += text_element(
          "li", run.label + ": this run is not finished, its state is '" + run.state + "'");
    for (const std::string& note : runs[i].notes)
      items += text_element("li", run.label + ": " + note);
  }
  return items.empty() ? "" : element("ul", items, {{"class", "notes"}});
}

std::string evaluation_table(const Summary& summary) {
  std::string rows;
  for (const RunSummary& run : summary.runs) {
    const auto trained = std::find_if(run.final.begin(), run.final.end(), [&](const EvalRow& row) {
      return row.length == run.trained_length;
    });
    for (const EvalRow& eval : run.final) {
      const double ratio =
          trained == run.final.end() ? std::nan("") : std::exp(eval.loss - trained->loss);
      std::string row =
          run_cell(summary, run) + cell(format_context(static_cast<double>(eval.length)));
      row += value_with_note(format_fixed(eval.loss, 4), interval(eval.low, eval.high, 4));
      row += value_with_note(format_fixed(std::exp(eval.loss), 2),
                             interval(std::exp(eval.low), std::exp(eval.high), 2));
      row += cell(format_fixed(ratio, 3)) + cell(format_fixed(eval.bits_per_byte, 4));
      row += cell(format_exact(eval.targets)) + cell(format_short(eval.tokens));
      const bool first = &eval == &run.final.front() && &run != &summary.runs.front();
      rows += element("tr", row, {{"class", first ? "first" : ""}});
    }
  }
  if (rows.empty()) return "";
  return table(head_cell("run") + head_cell("context") + head_cell("loss, nats", "95 % interval") +
                   head_cell("perplexity", "95 % interval") +
                   head_cell("ratio", "to trained length") + head_cell("bits/byte") +
                   head_cell("targets", "n") + head_cell("after", "tokens"),
               rows) +
         paragraph(
             "Perplexities count every real target once and no padding. The intervals are a "
             "bootstrap over validation documents: they say how exactly this model was "
             "measured, not how another seed would have done. Runs measured on the "
             "same documents can differ reliably although their intervals overlap. Bits per byte "
             "compare across tokenizers.");
}

std::string protocol_table(const Summary& summary) {
  std::string rows;
  for (const RunSummary& run : summary.runs)
    for (const EvalRow& eval : run.protocol)
      rows += element("tr", run_cell(summary, run) + cell(eval.protocol, "code text") +
                                cell(format_context(static_cast<double>(eval.length))) +
                                cell(format_fixed(eval.loss, 4)) +
                                cell(format_fixed(std::exp(eval.loss), 2)) +
                                cell(format_exact(eval.targets)));
  if (rows.empty()) return "";
  return text_element("h3", "Other protocols") +
         table(head_cell("run") + head_cell("protocol", "", "text") +
                   head_cell("prefix", "tokens") + head_cell("loss", "nats") +
                   head_cell("perplexity") + head_cell("targets", "n"),
               rows) +
         paragraph(
             "Prefixes of fixed blocks, few batches, as the named protocol prescribes; to be "
             "read beside numbers measured the same way, not beside the table above.");
}

// The values of a key among the runs of a variant: one, or all of them.
std::string values_of(const ConfigRow& row, const Variant& variant) {
  std::string text;
  std::vector<std::string> seen;
  for (size_t i : variant.runs) {
    if (std::find(seen.begin(), seen.end(), row.values[i]) != seen.end()) continue;
    seen.push_back(row.values[i]);
    text += (text.empty() ? "" : " | ") + (row.values[i].empty() ? "–" : row.values[i]);
  }
  return text;
}

std::string difference_table(const Summary& summary) {
  if (summary.runs.size() < 2) return "";
  if (summary.differences.empty())
    return paragraph("All " + std::to_string(summary.equal_keys) + " settings are equal.");
  std::string head = head_cell("setting"), rows;
  for (const Variant& variant : summary.variants) head += head_cell(variant.name, "", "text");
  for (const ConfigRow& difference : summary.differences) {
    std::string row = cell(difference.key, "code");
    for (const Variant& variant : summary.variants)
      row += cell(values_of(difference, variant), "code text");
    rows += element("tr", row);
  }
  return table(head, rows) + paragraph("All other " + std::to_string(summary.equal_keys) +
                                       " settings are equal (names and directories aside).");
}

std::string reproducibility(const std::vector<RunData>& runs, const Summary& summary) {
  std::string out;
  for (size_t i = 0; i < runs.size(); ++i) {
    std::string facts = text_element("dt", "directory") + text_element("dd", runs[i].directory);
    for (const auto& [key, value] : runs[i].record)
      facts += text_element("dt", key) + text_element("dd", value.empty() ? "–" : value);
    out += element("h3", render_swatch(summary.variants[summary.runs[i].variant].style) +
                             escape(summary.runs[i].label));
    out += element("dl", facts, {{"class", "record"}});
    if (!runs[i].config_text.empty())
      out += element("details",
                     text_element("summary", "config.yaml, every setting and where it came from") +
                         text_element("pre", runs[i].config_text));
  }
  return out;
}

std::string head_of(const std::string& title) {
  return element(
      "head",
      empty_element("meta", {{"charset", "utf-8"}}) +
          empty_element("meta", {{"http-equiv", "Content-Security-Policy"},
                                 {"content", "default-src 'none'; style-src 'unsafe-inline'"}}) +
          empty_element("meta", {{"name", "viewport"}, {"content", "width=device-width"}}) +
          text_element("title", title) + element("style", std::string(kStyle) + kSvgStyle));
}

}  // namespace

Page render_page(const SweepData& subject) {
  const std::vector<RunData>& runs = subject.runs;
  const Summary summary = summarize(runs);
  const Comparison comparison = compare_variants(runs, summary, subject.baseline);
  const std::string title = subject.name.empty() ? title_of(summary) : "Sweep " + subject.name;
  const size_t n = runs.size();
  Page page;
  const auto draw = [&](std::vector<Figure> list, const char* css = "figures") {
    page.figures.insert(page.figures.end(), list.begin(), list.end());
    return figures(list, css);
  };
  std::string body = text_element("h1", title);
  body += paragraph(std::to_string(n) + (n == 1 ? " run" : " runs") +
                    ", read from the run directories by kla " + KLA_VERSION + " (" + KLA_GIT + ")");
  body += seed_statement(summary);
  body += section(
      "Comparison over seeds",
      comparison_table(summary, comparison) +
          draw(comparison_figures(runs, summary, comparison, subject.references), "figures whole"));
  body += section(
      "Summary",
      summary_table(summary) +
          paragraph("Train loss: mean over the last 5 % of the tokens. Validation: at the context "
                    "length the run was trained with. Tokens/s: median of the logged rates. "
                    "Wall time: to the last logged step, evaluations and saves included, the time "
                    "between a stop and the resume not.") +
          run_notes(runs, summary));
  body += section("Training", draw(training_figures(runs, summary)));
  body += section("Validation", draw(validation_figures(runs, summary)) +
                                    evaluation_table(summary) + protocol_table(summary));
  body += section("Learning rate and gradient norm", draw(optimizer_figures(runs, summary)));
  const std::vector<Figure> probes = probe_figures(runs, summary);
  body += section("Inside the mixers",
                  probes.empty() ? "" : probe_legend(runs, summary) + draw(probes));
  body += section("Differences in config", difference_table(summary));
  body += section("How to repeat these runs", reproducibility(runs, summary));
  page.html =
      "<!DOCTYPE html>\n" +
      element("html", head_of(title) + element("body", element("main", body)), {{"lang", "en"}}) +
      "\n";
  return page;
}

std::string render_report(const std::vector<RunData>& runs) {
  return render_page({.name = "", .baseline = "", .runs = runs, .references = {}}).html;
}

std::string standalone_svg(const Figure& figure) {
  const size_t end = figure.svg.find('>');  // of the opening tag
  const std::string inside =
      text_element("title", figure.caption) + element("style", kSvgStyle) +
      empty_element("rect", {{"width", "100%"}, {"height", "100%"}, {"fill", "#fff"}});
  return figure.svg.substr(0, end + 1) + inside + figure.svg.substr(end + 1) + "\n";
}

}  // namespace kla::report
