#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <numbers>

#include "core/clock.h"
#include "core/error.h"
#include "core/philox.h"

namespace kla {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Window read_window(const TokenDataset& data, int64_t first, int64_t targets, bool reset) {
  Window window;
  window.tokens.resize(static_cast<size_t>(targets + 1));
  data.read(first, targets + 1, window.tokens.data());
  if (reset) {
    window.reset.resize(static_cast<size_t>(targets));
    data.document_starts(first, targets, window.reset.data());
    window.reset[0] = 0;  // a window starts from the empty state anyway
  }
  return window;
}

// The losses of a round of windows: scorer.rows() of them for each process.
std::vector<std::vector<float>> score_together(Scorer& scorer, const std::vector<Window>& windows,
                                               const EvaluationShare& share) {
  if (share.size == 1) return scorer.score(windows);
  const auto n = static_cast<int64_t>(windows.size());
  const int64_t begin = std::min(n, share.rank * scorer.rows());
  const int64_t end = std::min(n, begin + scorer.rows());
  std::vector<float> mine;
  for (const auto& losses : scorer.score({windows.begin() + begin, windows.begin() + end}))
    mine.insert(mine.end(), losses.begin(), losses.end());
  const int64_t most = scorer.rows() * windows.front().targets();  // only the last may be short
  const std::vector<float> all = share.gather(mine, most);
  std::vector<std::vector<float>> losses;
  for (int64_t w = 0; w < n; ++w) {
    const auto first =
        all.begin() + w / scorer.rows() * most + w % scorer.rows() * windows.front().targets();
    losses.emplace_back(first, first + windows[static_cast<size_t>(w)].targets());
  }
  return losses;
}

// Adds the losses of the targets first+1, first+2, ... to the documents they belong to.
void add_by_document(const TokenDataset& data, int64_t first, const std::vector<float>& losses,
                     DocumentLosses& sums) {
  int64_t document = data.document_of(first + 1);
  int64_t next = data.document_start(document + 1);
  for (size_t i = 0; i < losses.size(); ++i) {
    const int64_t token = first + 1 + static_cast<int64_t>(i);
    while (token >= next) next = data.document_start(++document + 1);
    sums.loss[static_cast<size_t>(document)] += static_cast<double>(losses[i]);
    ++sums.count[static_cast<size_t>(document)];
  }
}

}  // namespace

double Perplexity::ppl() const {
  return std::exp(loss);
}

double Perplexity::bits_per_byte() const {
  return loss * static_cast<double>(tokens) / (static_cast<double>(bytes) * std::numbers::ln2);
}

std::string describe(const Perplexity& p) {
  char text[200];
  int n = std::snprintf(text, sizeof(text), "length %lld | loss %.4f",
                        static_cast<long long>(p.length), p.loss);
  auto append = [&](const char* format, auto... values) {
    n += std::snprintf(text + n, sizeof(text) - static_cast<size_t>(n), format, values...);
  };
  if (!std::isnan(p.low)) append(" [%.4f, %.4f]", p.low, p.high);
  append(" | ppl %.2f", p.ppl());
  if (p.bytes > 0) append(" | %.4f bits/byte", p.bits_per_byte());
  append(" | %lld targets | %.1f s", static_cast<long long>(p.tokens), p.seconds);
  return text;
}

Perplexity evaluate_perplexity(Scorer& scorer, const TokenDataset& data,
                               const std::vector<int32_t>& token_bytes,
                               const PerplexityOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress) {
  const auto start = Clock::now();
  const int64_t T = options.length;
  int64_t total = data.tokens() - 1;
  if (options.max_tokens > 0 && options.max_tokens < total)  // whole windows, one at least
    total = std::min(total, std::max<int64_t>(1, options.max_tokens / T) * T);
  const auto documents = static_cast<size_t>(data.documents());
  Perplexity result;
  DocumentLosses& sums = result.by_document;
  sums = {std::vector<double>(documents), std::vector<int64_t>(documents)};
  result.length = T;
  double loss = 0;
  const int64_t round = scorer.rows() * options.share.size;
  for (int64_t first = 0; first < total;) {
    std::vector<Window> windows;
    std::vector<int64_t> starts;
    for (int64_t row = 0; row < round && first < total; ++row, first += T) {
      windows.push_back(
          read_window(data, first, std::min(T, total - first), options.reset_at_documents));
      starts.push_back(first);
    }
    const auto losses = score_together(scorer, windows, options.share);
    for (size_t w = 0; w < windows.size(); ++w) {
      add_by_document(data, starts[w], losses[w], sums);
      for (float nats : losses[w]) loss += static_cast<double>(nats);
      for (size_t i = 1; i < windows[w].tokens.size(); ++i)
        result.bytes += token_bytes[static_cast<size_t>(windows[w].tokens[i])];
    }
    if (progress) progress(std::min(first, total), total);
  }
  result.tokens = total;
  result.loss = loss / static_cast<double>(total);
  for (int64_t count : sums.count) result.documents += count > 0;
  const Interval interval = bootstrap_interval(sums.loss, sums.count);
  result.low = interval.low;
  result.high = interval.high;
  result.seconds = seconds_since(start);
  return result;
}

Interval bootstrap_interval(const std::vector<double>& loss_sums,
                            const std::vector<int64_t>& counts, int resamples, uint64_t seed) {
  std::vector<size_t> documents;
  for (size_t i = 0; i < counts.size(); ++i)
    if (counts[i] > 0) documents.push_back(i);
  if (documents.size() < 2) return {kNaN, kNaN};
  const RandomStream random(seed, "bootstrap");
  const uint64_t n = documents.size();
  std::vector<double> means;
  uint64_t draw = 0;
  for (int r = 0; r < resamples; ++r) {
    double loss = 0, count = 0;
    for (uint64_t i = 0; i < n; ++i) {
      const auto pick = static_cast<uint64_t>(random.uniform(draw++) * static_cast<double>(n));
      const size_t d = documents[static_cast<size_t>(std::min(pick, n - 1))];
      loss += loss_sums[d];
      count += static_cast<double>(counts[d]);
    }
    means.push_back(loss / count);
  }
  std::sort(means.begin(), means.end());
  auto quantile = [&](double q) {
    const double at = q * static_cast<double>(means.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, means.size() - 1);
    return means[below] + (at - std::floor(at)) * (means[above] - means[below]);
  };
  return {quantile(0.025), quantile(0.975)};
}

PairedLoss compare_losses(const DocumentLosses& a, const DocumentLosses& b) {
  if (a.count != b.count)
    throw Error(Exit::data, "the two models were scored on different targets",
                "use the same validation set and context length for both");
  PairedLoss result;
  std::vector<double> differences;
  double sum = 0;
  for (size_t d = 0; d < a.count.size(); ++d) {
    differences.push_back(b.loss[d] - a.loss[d]);
    sum += differences.back();
    result.targets += a.count[d];
    result.documents += a.count[d] > 0;
  }
  result.difference = sum / static_cast<double>(result.targets);
  const Interval interval = bootstrap_interval(differences, a.count);
  result.low = interval.low;
  result.high = interval.high;
  return result;
}

std::vector<ReleaseResult> evaluate_release_protocol(Scorer& scorer, const TokenDataset& data,
                                                     int32_t end_of_text,
                                                     const std::vector<int64_t>& prefixes,
                                                     const ReleaseProtocol& protocol) {
  const int64_t files = (data.tokens() + protocol.file_tokens - 1) / protocol.file_tokens;
  const int64_t longest = *std::max_element(prefixes.begin(), prefixes.end());
  const int64_t blocks = std::min(protocol.blocks, protocol.file_tokens / protocol.block_tokens);
  if (blocks < 1 || longest >= protocol.block_tokens)
    throw Error(Exit::usage,
                "the release protocol scores prefixes of " + std::to_string(protocol.block_tokens) +
                    "-token blocks",
                "ask for prefixes shorter than a block");
  std::map<int64_t, int64_t> readers_of_file;
  for (int64_t r = 0; r < protocol.readers; ++r) ++readers_of_file[r % files];

  struct Sums {
    double text = 0, fill = 0;
    int64_t text_count = 0, fill_count = 0;
  };
  std::vector<Sums> sums(prefixes.size());
  for (const auto& [file, readers] : readers_of_file) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = file * protocol.file_tokens + block * protocol.block_tokens;
      Window window;
      window.tokens.assign(static_cast<size_t>(longest + 1), end_of_text);
      const int64_t real = std::clamp<int64_t>(data.tokens() - first, 0, longest + 1);
      if (real > 0) data.read(first, real, window.tokens.data());
      const std::vector<float> losses = scorer.score({window})[0];
      for (size_t p = 0; p < prefixes.size(); ++p) {
        for (int64_t i = 0; i < prefixes[p]; ++i) {
          const double nats =
              static_cast<double>(losses[static_cast<size_t>(i)]) * static_cast<double>(readers);
          const bool is_text = i + 1 < real;  // target i is token first + i + 1
          (is_text ? sums[p].text : sums[p].fill) += nats;
          (is_text ? sums[p].text_count : sums[p].fill_count) += readers;
        }
      }
    }
  }

  std::vector<ReleaseResult> results;
  for (size_t p = 0; p < prefixes.size(); ++p) {
    const Sums& s = sums[p];
    const auto text = static_cast<double>(s.text_count), fill = static_cast<double>(s.fill_count);
    results.push_back({.prefix = prefixes[p],
                       .loss_padded = (s.text + s.fill) / (text + fill),
                       .loss_text = s.text_count > 0 ? s.text / text : kNaN,
                       .loss_fill = s.fill_count > 0 ? s.fill / fill : kNaN,
                       .fill_share = fill / (text + fill),
                       .targets = s.text_count + s.fill_count});
  }
  return results;
}

}  // namespace kla
