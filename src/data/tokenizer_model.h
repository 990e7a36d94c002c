// What is inside a SentencePiece model file, read with our own small protobuf walker before the
// library sees a byte of it: the library trusts its input (a crafted normalisation table makes
// 0.1.97 crash while encoding), and we need to know things it does not tell.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kla {

enum class PieceKind { normal = 1, unknown = 2, control = 3, user = 4, unused = 5, byte = 6 };

struct Piece {
  std::string text;  // UTF-8, a space is U+2581
  PieceKind kind;
};

struct TokenizerModel {
  std::vector<Piece> pieces;  // by id
  int32_t unk_id = -1;
  int32_t space_id = -1;         // the piece for one space, if there is one
  bool byte_fallback = false;    // characters without a piece become byte pieces
  bool add_dummy_prefix = true;  // text is encoded as if a space stood before it
  // No piece reaches over the space between two words or over a newline (which is a byte piece), so
  // words can be encoded one by one.
  bool words_are_separate = false;
};

inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581

// Error{data} naming `name` unless the bytes are a model we can trust: limits of size and number,
// distinct valid pieces, finite scores, exactly one unknown, byte pieces complete if there are any,
// and no normalisation, so that decode(encode(text)) gives the text back.
TokenizerModel parse_tokenizer_model(std::string_view bytes, const std::string& name);

}  // namespace kla
