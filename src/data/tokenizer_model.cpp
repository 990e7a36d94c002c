#include "data/tokenizer_model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <unordered_set>

#include "core/error.h"
#include "core/utf8.h"

namespace kla {
namespace {

constexpr size_t kMaxPieces = 1'000'000;
constexpr size_t kMaxPieceBytes = 4096;
constexpr uint64_t kBpe = 2;  // TrainerSpec.model_type

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw Error(Exit::data, "tokenizer '" + name + "' " + why,
              "give a SentencePiece model as Llama uses it, or let `kla data prepare` train one");
}

// One field of a protobuf message: its number and its value, a number or a run of bytes.
struct Field {
  uint64_t number = 0;
  uint64_t value = 0;
  std::string_view bytes;
  float as_float() const {
    float f;
    std::memcpy(&f, bytes.data(), sizeof(f));
    return f;
  }
};

class Walker {
 public:
  Walker(std::string_view message, const std::string& name) : rest_(message), name_(name) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = {};
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0:
        field.value = varint();
        return true;
      case 1:
        field.bytes = take(8);
        return true;
      case 2:
        field.bytes = take(varint());
        return true;
      case 5:
        field.bytes = take(4);
        return true;
      default:
        refuse(name_, "is not a SentencePiece model");
    }
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    refuse(name_, "is damaged or cut short");
  }
  std::string_view take(uint64_t count) {
    if (count > rest_.size()) refuse(name_, "is damaged or cut short");
    const std::string_view bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return bytes;
  }

  std::string_view rest_;
  const std::string& name_;
};

Piece parse_piece(std::string_view message, const std::string& name) {
  Piece piece{"", PieceKind::normal};
  Walker walker(message, name);
  for (Field field; walker.next(field);) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2 && (field.bytes.size() != 4 || !std::isfinite(field.as_float())))
      refuse(name, "has a score that is not a finite number");
    if (field.number == 3) {
      if (field.value < 1 || field.value > 6) refuse(name, "has a piece of an unknown kind");
      piece.kind = static_cast<PieceKind>(field.value);
    }
  }
  if (piece.text.empty() || piece.text.size() > kMaxPieceBytes || !valid_utf8(piece.text))
    refuse(name, "has an empty, oversized or invalid piece");
  return piece;
}

void parse_normalizer(std::string_view message, const std::string& name, TokenizerModel& model) {
  bool remove_extra_whitespaces = true, escape_whitespaces = true;
  Walker walker(message, name);
  for (Field field; walker.next(field);) {
    if (field.number == 2 && !field.bytes.empty())
      refuse(name, "changes the text before it encodes it (a normalisation table)");
    if (field.number == 3) model.add_dummy_prefix = field.value != 0;
    if (field.number == 4) remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) escape_whitespaces = field.value != 0;
  }
  if (remove_extra_whitespaces) refuse(name, "removes repeated spaces from the text");
  if (!escape_whitespaces) refuse(name, "does not mark spaces with U+2581");
}

uint64_t parse_model_type(std::string_view trainer_spec, const std::string& name) {
  uint64_t type = 1;
  Walker walker(trainer_spec, name);
  for (Field field; walker.next(field);)
    if (field.number == 3) type = field.value;
  return type;
}

// A space mark stands only where the piece begins, a newline nowhere.
bool within_word(const Piece& piece) {
  if (piece.kind != PieceKind::normal && piece.kind != PieceKind::user) return true;
  size_t body = 0;
  while (piece.text.compare(body, kSpaceMark.size(), kSpaceMark) == 0) body += kSpaceMark.size();
  return piece.text.find(kSpaceMark, body) == std::string::npos &&
         piece.text.find_first_of(" \n") == std::string::npos;
}

void check_pieces(TokenizerModel& model, const std::string& name) {
  std::unordered_set<std::string_view> seen;
  int64_t byte_pieces = 0;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    if (piece.text == kSpaceMark) model.space_id = static_cast<int32_t>(id);
    if (!seen.insert(piece.text).second) refuse(name, "has the same piece twice");
    if (piece.kind == PieceKind::unknown) {
      if (model.unk_id >= 0) refuse(name, "has more than one unknown piece");
      model.unk_id = static_cast<int32_t>(id);
    }
    if (piece.kind == PieceKind::byte) {
      unsigned value = 0;
      char end = 0;
      if (piece.text.size() != 6 ||
          std::sscanf(piece.text.c_str(), "<0x%2X%c", &value, &end) != 2 || end != '>')
        refuse(name, "has a byte piece that is not of the form <0xNN>");
      ++byte_pieces;
    }
  }
  if (model.unk_id < 0) refuse(name, "has no unknown piece");
  if (byte_pieces != 0 && byte_pieces != 256) refuse(name, "has only some of the 256 byte pieces");
  model.byte_fallback = byte_pieces == 256;
}

}  // namespace

TokenizerModel parse_tokenizer_model(std::string_view bytes, const std::string& name) {
  TokenizerModel model;
  uint64_t type = 1;
  bool normalizer_seen = false;
  Walker walker(bytes, name);
  for (Field field; walker.next(field);) {
    if (field.number == 1) {
      if (model.pieces.size() == kMaxPieces) refuse(name, "has more than a million pieces");
      model.pieces.push_back(parse_piece(field.bytes, name));
    }
    if (field.number == 2) type = parse_model_type(field.bytes, name);
    if (field.number == 3) {
      parse_normalizer(field.bytes, name, model);
      normalizer_seen = true;
    }
  }
  if (model.pieces.empty()) refuse(name, "is not a SentencePiece model");
  if (!normalizer_seen) refuse(name, "removes repeated spaces from the text");
  check_pieces(model, name);
  model.words_are_separate = type == kBpe && model.add_dummy_prefix && model.byte_fallback &&
                             model.space_id >= 0 &&
                             std::all_of(model.pieces.begin(), model.pieces.end(), within_word);
  return model;
}

}  // namespace kla
