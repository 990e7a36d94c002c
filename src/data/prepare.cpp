#include "data/prepare.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>

#include "core/clock.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/philox.h"
#include "core/thread_pool.h"
#include "data/staged_output.h"
#include "data/token_pipeline.h"

namespace kla {
namespace {

// A preparation under way.
struct Job {
  const PrepareConfig& config;
  const std::atomic<bool>* stop;
  ThreadPool pool;
  CorpusPolicy policy;
  std::vector<CorpusFile> files, val_files;

  Job(const PrepareConfig& c, const std::atomic<bool>* s)
      : config(c), stop(s), pool(static_cast<int>(c.threads)) {
    policy.text_field = c.text_field;
    policy.stop_on_bad_document = c.bad_documents == "stop";
    files = list_corpus(c.inputs);
    val_files = list_corpus(c.val_inputs);
  }
};

void stop_if_asked(const Job& job) {
  if (job.stop && job.stop->load())
    throw Error(Exit::stopped, "interrupted: '" + job.config.output + "' was not written",
                "run the same command again");
}

// ---- what was asked for, and whether it is there already

std::vector<SourceFile> describe_sources(Job& job, const std::vector<CorpusFile>& files) {
  std::vector<SourceFile> sources(files.size());
  job.pool.run(static_cast<int64_t>(files.size()), [&](int64_t i, int) {
    const File file = File::open_read(files[static_cast<size_t>(i)].path);
    std::vector<char> block(1 << 20);
    Xxh3Stream hash;
    int64_t offset = 0;
    while (const size_t n = file.read_at(block.data(), block.size(), offset)) {
      stop_if_asked(job);
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

PrepareRecord request_of(const PrepareConfig& c, std::vector<SourceFile> sources) {
  PrepareRecord record;
  record.sources = std::move(sources);
  auto& s = record.settings;
  s = {{"inputs", joined(c.inputs)},
       {"val_inputs", joined(c.val_inputs)},
       {"val_fraction", shortest(c.val_fraction)},
       {"max_val_documents", std::to_string(c.max_val_documents)},
       {"add_bos", c.add_bos ? "true" : "false"},
       {"shard_tokens", std::to_string(c.shard_tokens)},
       {"text_field", c.text_field}};
  if (c.tokenizer.path.empty()) {
    s.emplace_back("tokenizer.vocab_size", std::to_string(c.tokenizer.vocab_size));
    s.emplace_back("tokenizer.character_coverage", shortest(c.tokenizer.character_coverage));
    s.emplace_back("tokenizer.sample_bytes", std::to_string(c.tokenizer.sample_bytes));
    s.emplace_back("tokenizer.seed", std::to_string(c.tokenizer.seed));
  } else {
    s.emplace_back("tokenizer.sha256", Tokenizer::load(c.tokenizer.path).sha256());
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
  for (const auto& [key, value] : a)
    if (!b.contains(key)) return key + " is " + value + " there, not set here";
  const auto same_files = [&](const std::vector<SourceFile>& x, const std::vector<SourceFile>& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), same);
  };
  if (!same_files(there.sources, asked.sources) ||
      !same_files(there.val_sources, asked.val_sources))
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

// The documents of the inputs, each with its split, or those of the val_inputs.
class DocumentSource {
 public:
  DocumentSource(const Job& job, Split from)
      : reader_(from == Split::val ? job.val_files : job.files, job.policy), from_(from) {
    if (job.val_files.empty()) val_fraction_ = job.config.val_fraction;
    if (from == Split::val && job.config.max_val_documents > 0)
      left_ = job.config.max_val_documents;
  }
  bool next(std::string& text, Split& split) {
    if (left_ == 0 || !reader_.next(text)) return false;
    --left_;
    split = from_ == Split::val ? Split::val : split_of(text, val_fraction_);
    return true;
  }
  const CorpusReader& reader() const { return reader_; }

 private:
  CorpusReader reader_;
  Split from_;
  double val_fraction_ = 0;
  int64_t left_ = std::numeric_limits<int64_t>::max();
};

class Progress {
 public:
  Progress(std::string what, const Job& job, const std::vector<CorpusFile>& files)
      : what_(std::move(what)), job_(job) {
    for (const CorpusFile& file : files) total_ += file.bytes;
  }
  ~Progress() { log::status_line(""); }

  void show(int64_t bytes_read, int64_t text_bytes) {
    stop_if_asked(job_);
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
  const Job& job_;
  Clock::time_point start_ = Clock::now();
  int64_t total_ = 0;
};

// ---- tokenizer

// The training documents that come first in a random order of their hashes, up to sample_bytes: a
// sample that depends neither on the order of the files nor on the number of threads.
std::map<uint64_t, std::string> sample_documents(const Job& job) {
  const RandomStream random(job.config.tokenizer.seed, "tokenizer sample");
  DocumentSource source(job, Split::train);
  Progress progress("sampling", job, job.files);
  std::map<uint64_t, std::string> sample;
  int64_t kept = 0, seen = 0, documents = 0;
  std::string text;
  for (Split split = Split::train; source.next(text, split);) {
    const auto size = static_cast<int64_t>(text.size());
    seen += size;
    if (++documents % 1000 == 0) progress.show(source.reader().bytes_read(), seen);
    if (split != Split::train) continue;
    const uint64_t place = random.bits(xxh3_64(text.data(), text.size()));
    if (sample.emplace(place, std::move(text)).second) kept += size;
    while (kept > job.config.tokenizer.sample_bytes && sample.size() > 1) {
      kept -= static_cast<int64_t>(std::prev(sample.end())->second.size());
      sample.erase(std::prev(sample.end()));
    }
  }
  return sample;
}

Tokenizer obtain_tokenizer(const Job& job, PrepareSummary& summary) {
  const PrepareConfig& config = job.config;
  if (!config.tokenizer.path.empty()) return Tokenizer::load(config.tokenizer.path);
  const auto start = Clock::now();
  auto sample = sample_documents(job);
  log::info("training a tokenizer of " + std::to_string(config.tokenizer.vocab_size) + " ids on " +
            std::to_string(sample.size()) + " documents");
  auto next = sample.begin();
  const std::string model = train_tokenizer(config.tokenizer, [&](std::string& text) {
    stop_if_asked(job);
    if (next == sample.end()) return false;
    text = std::move(next++->second);
    return true;
  });
  summary.training_seconds = seconds_since(start);
  return Tokenizer::from_bytes(model, config.output + "/tokenizer.model");
}

// ---- tokens

PipelineCounts run_pipeline(Job& job, Split from, const Tokenizer& tokenizer, DatasetWriter& train,
                            DatasetWriter& val, CorpusCounts& corpus) {
  DocumentSource source(job, from);
  Progress progress(from == Split::val ? "validation" : "tokenizing", job,
                    from == Split::val ? job.val_files : job.files);
  PipelineIo io{
      [&](std::string& text, Split& split) { return source.next(text, split); }, &train, &val,
      [&](int64_t text_bytes) { progress.show(source.reader().bytes_read(), text_bytes); }};
  const PipelineCounts counts = tokenize_documents(io, tokenizer, job.config.add_bos, job.pool);
  corpus += source.reader().counts();
  return counts;
}

void check_splits(const PrepareConfig& config, const DatasetWriter& train,
                  const DatasetWriter& val) {
  if (train.documents() == 0)
    throw Error(Exit::data, "no usable documents in " + joined(config.inputs),
                "check the files and text_field");
  const bool wanted = config.val_fraction > 0 || !config.val_inputs.empty();
  if (wanted && val.documents() == 0)
    throw Error(Exit::data,
                "none of the " + std::to_string(train.documents()) +
                    " documents fell into the validation split",
                "raise val_fraction, give val_inputs, or set val_fraction: 0 for no validation");
}

// Writes everything into `staged`; `record` comes with the request and gets the counts.
void write_output(Job& job, const StagedOutput& staged, PrepareRecord& record,
                  PrepareSummary& summary) {
  const Tokenizer tokenizer = obtain_tokenizer(job, summary);
  if (job.config.add_bos && tokenizer.bos_id() < 0)
    throw Error(Exit::data, "the tokenizer has no begin-of-text id (<s>)", "set add_bos: false");
  record.tokenizer_sha256 = tokenizer.sha256();
  const auto writer_for = [&](const char* split) {
    return DatasetWriter(staged.path() + "/" + split, tokenizer.vocab_size(), tokenizer.sha256(),
                         job.config.shard_tokens);
  };
  DatasetWriter train = writer_for("train"), val = writer_for("val");

  const auto start = Clock::now();
  PipelineCounts total;
  total += run_pipeline(job, Split::train, tokenizer, train, val, summary.corpus);
  if (!job.val_files.empty())
    total += run_pipeline(job, Split::val, tokenizer, train, val, summary.corpus);
  summary.tokenizing_seconds = seconds_since(start);
  check_splits(job.config, train, val);

  train.finish(record.sources);
  if (val.documents() > 0) val.finish(job.val_files.empty() ? record.sources : record.val_sources);
  record.counts = {train.documents(), val.documents(),  train.tokens(),
                   val.tokens(),      total.text_bytes, total.fallback_tokens};
  write_file_atomic(staged.path() + "/tokenizer.model", tokenizer.model());
}

}  // namespace

PrepareSummary prepare_dataset(const PrepareConfig& config, const std::atomic<bool>* stop) {
  Job job(config, stop);
  PrepareRecord record = request_of(config, describe_sources(job, job.files));
  record.val_sources = describe_sources(job, job.val_files);
  PrepareSummary summary;
  if (already_prepared(config.output, record)) {
    summary.already_done = true;
  } else {
    StagedOutput staged(config.output);
    write_output(job, staged, record, summary);
    write_file_atomic(staged.path() + "/" + kRecordName, record_to_json(record));
    stop_if_asked(job);
    staged.commit();
  }
  summary.counts = record.counts;
  return summary;
}

}  // namespace kla
