#include "data/corpus.h"

#include <zlib.h>
#include <zstd.h>

#include "data_fixture.h"

namespace kla {
namespace {

std::string gzip(const std::string& text) {
  z_stream z{};
  EXPECT_EQ(deflateInit2(&z, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&z, text.size()) + 64, '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = static_cast<uInt>(text.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&z, Z_FINISH), Z_STREAM_END);
  deflateEnd(&z);
  return out.substr(0, z.total_out);
}

std::string zstd(const std::string& text, int window_log = 0) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  if (window_log > 0) ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
  std::string out(ZSTD_compressBound(text.size()) + 64, '\0');
  // Streamed with an unknown size, so that the frame states its window and not its content size.
  ZSTD_inBuffer input{text.data(), text.size(), 0};
  ZSTD_outBuffer output{out.data(), out.size(), 0};
  ZSTD_compressStream2(context, &output, &input, ZSTD_e_continue);
  EXPECT_EQ(ZSTD_compressStream2(context, &output, &input, ZSTD_e_end), 0u);
  ZSTD_freeCCtx(context);
  out.resize(output.pos);
  return out;
}

class CorpusTest : public DataTest {
 protected:
  std::vector<std::string> read(const std::vector<std::string>& inputs, CorpusPolicy policy = {}) {
    CorpusReader reader(list_corpus(inputs), policy);
    std::vector<std::string> documents;
    for (std::string text; reader.next(text);) documents.push_back(text);
    counts_ = reader.counts();
    bytes_read_ = reader.bytes_read();
    return documents;
  }
  CorpusCounts counts_;
  int64_t bytes_read_ = 0;
};

TEST_F(CorpusTest, EveryFormGivesTheSameDocuments) {
  const std::string lines = made_up_jsonl(1, 3000);
  write("plain/a.jsonl", lines);
  write("gz/a.jsonl.gz", gzip(lines));
  write("members/a.jsonl.gz", gzip(lines.substr(0, 5000)) + gzip(lines.substr(5000)));
  write("zst/a.jsonl.zst", zstd(lines));
  write("frames/a.jsonl.zst", zstd(lines.substr(0, 7000)) + zstd(lines.substr(7000)));
  const std::vector<std::string> expected = read({path("plain")});
  ASSERT_EQ(expected.size(), 3000u);
  EXPECT_NE(expected[0].find('\t'), std::string::npos);
  for (const char* form : {"gz", "members", "zst", "frames"})
    EXPECT_EQ(read({path(form)}), expected) << form;
}

TEST_F(CorpusTest, FilesAreReadInOrderAndAFileOfTextIsADocument) {
  write("c/b.txt", "second\n\nparagraph");
  write("c/a.txt", "first");
  write("c/sub/c.txt.gz", gzip("third"));
  write("c/notes.md", "not a corpus file");
  EXPECT_EQ(read({path("c")}), (std::vector<std::string>{"first", "second\n\nparagraph", "third"}));
  EXPECT_EQ(read({path("c/b.txt"), path("c/a.txt")})[0], "second\n\nparagraph");
}

TEST_F(CorpusTest, BadDocumentsAreSkippedAndCounted) {
  CorpusPolicy policy;
  policy.max_document_bytes = 200;
  const std::string nested = "{\"text\": " + std::string(90, '[') + std::string(90, ']') + "}";
  const std::string file = write("bad.jsonl",
                                 "{\"text\": \"good\"}\n"
                                 "\n"
                                 "{\"text\": \"\"}\n"
                                 "{\"text\": \"not utf-8 \xff\"}\n"
                                 "{\"text\": \"lone surrogate \\ud800\"}\n"
                                 "{\"text\": 5}\n"
                                 "{\"other\": \"x\", \"deeper\": {\"text\": \"not this one\"}}\n"
                                 "[\"text\"]\n"
                                 "{\"text\": \"cut\n" +
                                     nested + "\n{\"text\": \"" + std::string(300, 'x') +
                                     "\"}\n"
                                     "{\"text\": \"last, without a newline\"}");
  EXPECT_EQ(read({file}, policy), (std::vector<std::string>{"good", "last, without a newline"}));
  EXPECT_EQ(counts_.documents, 2);
  EXPECT_EQ(counts_.empty, 1);
  EXPECT_EQ(counts_.invalid_utf8, 1);
  EXPECT_EQ(counts_.missing_field, 2);
  EXPECT_EQ(counts_.malformed, 4);
  EXPECT_EQ(counts_.too_long, 1);
  EXPECT_EQ(counts_.skipped(), 8);
}

TEST_F(CorpusTest, StopPolicyNamesFileAndLine) {
  CorpusPolicy policy;
  policy.stop_on_bad_document = true;
  const std::string file = write("bad.jsonl", "{\"text\": \"good\"}\n{\"text\": 5}\n");
  EXPECT_MENTIONS(error_of(Exit::data, [&] { read({file}, policy); }), "bad.jsonl:2");
}

TEST_F(CorpusTest, AnotherFieldCanHoldTheText) {
  CorpusPolicy policy;
  policy.text_field = "content";
  const std::string file = write("a.jsonl", "{\"content\": \"this\", \"text\": \"not this\"}\n");
  EXPECT_EQ(read({file}, policy), std::vector<std::string>{"this"});
}

TEST_F(CorpusTest, MissingAndUnreadableInputs) {
  EXPECT_MENTIONS(error_of(Exit::io, [&] { read({path("nowhere")}); }), "nowhere");
  write("empty/readme.md", "x");
  EXPECT_MENTIONS(error_of(Exit::data, [&] { read({path("empty")}); }), "empty");
  EXPECT_MENTIONS(error_of(Exit::data, [&] { read({write("a.parquet", "PAR1")}); }), "a.parquet");
}

TEST_F(CorpusTest, DamagedCompressedFilesAreNamed) {
  const std::string lines = made_up_jsonl(1, 3000);
  for (const auto& [name, packed] : {std::pair<std::string, std::string>{"a.jsonl.gz", gzip(lines)},
                                     {"b.jsonl.zst", zstd(lines)}}) {
    const auto message_for = [&, file = name](const std::string& bytes) {
      const std::string written = write(file, bytes);
      return error_of(Exit::data, [&] { read({written}); });
    };
    EXPECT_MENTIONS(message_for(packed.substr(0, packed.size() / 2)), name);
    EXPECT_MENTIONS(message_for(packed.substr(0, packed.size() - 1)), "cut short");
    EXPECT_MENTIONS(message_for(""), "cut short");
    EXPECT_MENTIONS(message_for("plain text under a wrong name"), "damaged");
    std::string flipped = packed;
    flipped[flipped.size() / 2] ^= 16;
    EXPECT_MENTIONS(message_for(flipped), name);
  }
}

TEST_F(CorpusTest, BombsAndHugeWindowsAreRefused) {
  const std::string zeros(100 << 20, '0');
  const std::string file = write("bomb.jsonl.zst", zstd(zeros));
  EXPECT_MENTIONS(error_of(Exit::data, [&] { read({file}); }), "expands");
  const std::string window = write("window.jsonl.zst", zstd(made_up_jsonl(1, 10), 28));
  EXPECT_MENTIONS(error_of(Exit::data, [&] { read({window}); }), "window.jsonl.zst");
}

TEST_F(CorpusTest, ProgressEndsAtTheSizeOfTheFiles) {
  const std::string packed = zstd(made_up_jsonl(1, 500));
  read({write("a.jsonl.zst", packed), write("b.txt", "text")});
  EXPECT_EQ(bytes_read_, static_cast<int64_t>(packed.size()) + 4);
}

}  // namespace
}  // namespace kla
