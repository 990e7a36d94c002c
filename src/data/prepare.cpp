#include "data/prepare.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/thread_pool.h"
#include "data/staged_output.h"
#include "data/token_pipeline.h"

namespace kla {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_options(const PrepareOptions& o) {
  const auto refuse = [](const std::string& what, const std::string& remedy) {
    throw Error(Exit::usage, what, remedy);
  };
  if (o.inputs.empty()) refuse("no inputs to prepare", "name text files or folders");
  if (o.output.empty()) refuse("no output folder to prepare into", "name one");
  if (!(o.val_fraction >= 0 && o.val_fraction < 1))
    refuse("val_fraction must be at least 0 and below 1", "0.01 is usual");
  if (o.shard_tokens < 1) refuse("shard_tokens must be positive", "100e6 is usual");
  if (o.tokenizer.sample_bytes < 1)
    refuse("tokenizer.sample_bytes must be positive", "32M is usual");
  if (!(o.tokenizer.character_coverage > 0 && o.tokenizer.character_coverage <= 1))
    refuse("tokenizer.character_coverage must be in (0, 1]", "0.99995 is usual");
}

void stop_if_asked(const PrepareOptions& options) {
  if (options.stop && options.stop->load())
    throw Error(Exit::stopped, "interrupted: '" + options.output + "' was not written",
                "run the same command again");
}

// ---- what was asked for, and whether it is there already

std::vector<SourceFile> describe_sources(const std::vector<CorpusFile>& files,
                                         const PrepareOptions& options, ThreadPool& pool) {
  std::vector<SourceFile> sources(files.size());
  pool.run(static_cast<int64_t>(files.size()), [&](int64_t i, int) {
    const File file = File::open_read(files[static_cast<size_t>(i)].path);
    std::vector<char> block(1 << 20);
    Xxh3Stream hash;
    int64_t offset = 0;
    while (const size_t n = file.read_at(block.data(), block.size(), offset)) {
      stop_if_asked(options);
      hash.update(block.data(), n);
      offset += static_cast<int64_t>(n);
    }
    sources[static_cast<size_t>(i)] = {file.path(), offset, hash.hex()};
  });
  return sources;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

std::string shortest(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.17g", value);
  return text;
}

PrepareRecord request_of(const PrepareOptions& o, std::vector<SourceFile> sources) {
  PrepareRecord record;
  record.sources = std::move(sources);
  auto& s = record.settings;
  s = {{"inputs", joined(o.inputs)},
       {"val_inputs", joined(o.val_inputs)},
       {"val_fraction", shortest(o.val_fraction)},
       {"max_val_documents", std::to_string(o.max_val_documents)},
       {"add_bos", o.add_bos ? "true" : "false"},
       {"shard_tokens", std::to_string(o.shard_tokens)},
       {"text_field", o.corpus.text_field},
       {"max_document_bytes", std::to_string(o.corpus.max_document_bytes)}};
  if (o.tokenizer_path.empty()) {
    s.emplace_back("tokenizer.vocab_size", std::to_string(o.tokenizer.vocab_size));
    s.emplace_back("tokenizer.character_coverage", shortest(o.tokenizer.character_coverage));
    s.emplace_back("tokenizer.sample_bytes", std::to_string(o.tokenizer.sample_bytes));
  } else {
    s.emplace_back("tokenizer.sha256", sha256_file(o.tokenizer_path));
  }
  return record;
}

// Names the first thing in which two requests differ; empty if they are the same.
std::string difference(const PrepareRecord& there, const PrepareRecord& asked) {
  const std::map<std::string, std::string> a(there.settings.begin(), there.settings.end());
  const std::map<std::string, std::string> b(asked.settings.begin(), asked.settings.end());
  for (const auto& [key, value] : b) {
    const auto found = a.find(key);
    const std::string old = found == a.end() ? "not set" : found->second;
    if (old != value) return key + " is " + old + " there, " + value + " here";
  }
  const auto same = [](const SourceFile& x, const SourceFile& y) {
    return x.path == y.path && x.xxh3 == y.xxh3;
  };
  if (a.size() != b.size()) return "the settings";
  if (!std::equal(there.sources.begin(), there.sources.end(), asked.sources.begin(),
                  asked.sources.end(), same))
    return "the text files have changed";
  return "";
}

// True if the output holds what is asked for; Error{usage} if it holds something else.
bool already_prepared(const std::string& output, PrepareRecord& asked) {
  const std::string remedy = "choose another output, or delete '" + output + "'";
  if (!file_exists(output)) return false;
  if (!file_exists(output + "/" + kRecordName))
    throw Error(Exit::usage, "'" + output + "' exists and is not a prepared corpus", remedy);
  const PrepareRecord there = read_record(output);
  const std::string differs = difference(there, asked);
  if (!differs.empty())
    throw Error(Exit::usage, "'" + output + "' was prepared differently: " + differs, remedy);
  asked = there;
  return true;
}

// ---- documents and their split

// Duplicates of a document have its hash, so they are never on both sides.
Split split_of(const std::string& text, double val_fraction) {
  const double place = static_cast<double>(xxh3_64(text.data(), text.size()) >> 11) * 0x1.0p-53;
  return place < val_fraction ? Split::val : Split::train;
}

class DocumentSource {
 public:
  DocumentSource(std::vector<CorpusFile> files, const PrepareOptions& options)
      : reader_(std::move(files), options.corpus), val_fraction_(options.val_fraction) {
    if (!options.val_inputs.empty()) val_fraction_ = 0;
  }
  bool next(std::string& text, Split& split) {
    if (!reader_.next(text)) return false;
    split = split_of(text, val_fraction_);
    return true;
  }
  const CorpusReader& reader() const { return reader_; }

 private:
  CorpusReader reader_;
  double val_fraction_;
};

class Progress {
 public:
  Progress(std::string what, const std::vector<CorpusFile>& files, const PrepareOptions& options)
      : what_(std::move(what)), options_(options) {
    for (const CorpusFile& file : files) total_ += file.bytes;
  }
  ~Progress() { log::status_line(""); }

  void show(int64_t bytes_read, int64_t text_bytes) {
    stop_if_asked(options_);
    constexpr int kWidth = 30;
    const double done =
        total_ > 0 ? std::min(1.0, static_cast<double>(bytes_read) / static_cast<double>(total_))
                   : 1.0;
    const auto filled = static_cast<size_t>(done * kWidth);
    char text[160];
    std::snprintf(text, sizeof(text), "%-10s [%s%s] %5.1f%%  %.1f MB/s", what_.c_str(),
                  std::string(filled, '#').c_str(), std::string(kWidth - filled, '.').c_str(),
                  100 * done, static_cast<double>(text_bytes) * 1e-6 / seconds_since(start_));
    log::status_line(text);
  }

 private:
  std::string what_;
  const PrepareOptions& options_;
  Clock::time_point start_ = Clock::now();
  int64_t total_ = 0;
};

// ---- tokenizer

// The documents with the smallest hashes, up to `limit` bytes: a sample of the training split that
// depends neither on the order of the files nor on chance.
std::map<uint64_t, std::string> sample_documents(const std::vector<CorpusFile>& files,
                                                 const PrepareOptions& options) {
  DocumentSource source(files, options);
  Progress progress("sampling", files, options);
  std::map<uint64_t, std::string> sample;
  int64_t kept = 0, seen = 0, documents = 0;
  std::string text;
  for (Split split = Split::train; source.next(text, split);) {
    seen += static_cast<int64_t>(text.size());
    if (++documents % 1000 == 0) progress.show(source.reader().bytes_read(), seen);
    if (split != Split::train) continue;
    const uint64_t hash = xxh3_64(text.data(), text.size());
    const auto size = static_cast<int64_t>(text.size());
    if (sample.emplace(hash, std::move(text)).second) kept += size;
    while (kept > options.tokenizer.sample_bytes && sample.size() > 1) {
      kept -= static_cast<int64_t>(std::prev(sample.end())->second.size());
      sample.erase(std::prev(sample.end()));
    }
  }
  return sample;
}

Tokenizer obtain_tokenizer(const std::vector<CorpusFile>& files, const PrepareOptions& options,
                           PrepareSummary& summary) {
  if (!options.tokenizer_path.empty()) return Tokenizer::load(options.tokenizer_path);
  const auto start = Clock::now();
  auto sample = sample_documents(files, options);
  log::status_line("training the tokenizer on " + std::to_string(sample.size()) + " documents");
  auto next = sample.begin();
  const std::string model = train_tokenizer(options.tokenizer, [&](std::string& text) {
    stop_if_asked(options);
    if (next == sample.end()) return false;
    text = std::move(next++->second);
    return true;
  });
  log::status_line("");
  summary.training_seconds = seconds_since(start);
  return Tokenizer::from_bytes(model, options.output + "/tokenizer.model");
}

// ---- tokens

PipelineCounts run_pipeline(const std::vector<CorpusFile>& files, const PrepareOptions& options,
                            const Tokenizer& tokenizer, ThreadPool& pool, DatasetWriter& train,
                            DatasetWriter& val, bool all_val, CorpusCounts& corpus) {
  DocumentSource source(files, options);
  Progress progress(all_val ? "val" : "tokenizing", files, options);
  int64_t left = all_val && options.max_val_documents > 0 ? options.max_val_documents
                                                          : std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> bytes_read = 0;  // the reader may be at work while progress is shown
  PipelineIo io;
  io.train = &train;
  io.val = &val;
  io.next = [&](std::string& text, Split& split) {
    if (left == 0 || !source.next(text, split)) return false;
    --left;
    if (all_val) split = Split::val;
    bytes_read = source.reader().bytes_read();
    return true;
  };
  io.progress = [&](int64_t text_bytes, int64_t) { progress.show(bytes_read, text_bytes); };
  const PipelineCounts counts = tokenize_documents(io, tokenizer, options.add_bos, pool);
  corpus += source.reader().counts();
  return counts;
}

void check_splits(const PrepareOptions& options, const DatasetWriter& train,
                  const DatasetWriter& val) {
  if (train.documents() == 0)
    throw Error(Exit::data, "no usable documents in " + joined(options.inputs),
                "check the files and the text_field");
  const bool wanted = options.val_fraction > 0 || !options.val_inputs.empty();
  if (wanted && val.documents() == 0)
    throw Error(Exit::data,
                "none of the " + std::to_string(train.documents()) +
                    " documents fell into the validation split",
                "raise val_fraction, give val_inputs, or set val_fraction: 0 for no validation");
}

}  // namespace

PrepareSummary prepare_dataset(const PrepareOptions& options) {
  check_options(options);
  ThreadPool pool(options.threads);
  const std::vector<CorpusFile> files = list_corpus(options.inputs);
  const std::vector<CorpusFile> val_files = list_corpus(options.val_inputs);
  const std::vector<SourceFile> sources = describe_sources(files, options, pool);
  const std::vector<SourceFile> val_sources = describe_sources(val_files, options, pool);
  std::vector<SourceFile> all_sources = sources;
  all_sources.insert(all_sources.end(), val_sources.begin(), val_sources.end());

  PrepareRecord record = request_of(options, all_sources);
  PrepareSummary summary;
  if (already_prepared(options.output, record)) {
    summary.already_done = true;
    summary.counts = record.counts;
    return summary;
  }

  StagedOutput staged(options.output);
  const Tokenizer tokenizer = obtain_tokenizer(files, options, summary);
  const std::string& sha256 = tokenizer.sha256();
  if (options.add_bos && tokenizer.bos_id() < 0)
    throw Error(Exit::data, "the tokenizer has no begin-of-text id (<s>)", "set add_bos: false");
  DatasetWriter train(staged.path() + "/train", tokenizer.vocab_size(), sha256,
                      options.shard_tokens);
  DatasetWriter val(staged.path() + "/val", tokenizer.vocab_size(), sha256, options.shard_tokens);
  const auto start = Clock::now();
  PipelineCounts total;
  total += run_pipeline(files, options, tokenizer, pool, train, val, false, summary.corpus);
  if (!val_files.empty())
    total += run_pipeline(val_files, options, tokenizer, pool, train, val, true, summary.corpus);
  summary.tokenizing_seconds = seconds_since(start);
  check_splits(options, train, val);

  train.finish(sources);
  if (val.documents() > 0) val.finish(val_sources.empty() ? sources : val_sources);
  record.counts = {train.documents(), val.documents(),  train.tokens(),
                   val.tokens(),      total.text_bytes, total.fallback_tokens};
  record.tokenizer_sha256 = sha256;
  write_file_atomic(staged.path() + "/tokenizer.model", tokenizer.model());
  write_file_atomic(staged.path() + "/" + kRecordName, record_to_json(record));
  stop_if_asked(options);
  staged.commit();
  summary.counts = record.counts;
  summary.vocab_size = tokenizer.vocab_size();
  return summary;
}

}  // namespace kla
