#include "core/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <cstdio>

#include "core/error.h"
#include "core/file.h"

namespace kla {
namespace {

std::string to_hex(const unsigned char* bytes, size_t n) {
  static const char* digits = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < n; ++i) {
    text += digits[bytes[i] >> 4];
    text += digits[bytes[i] & 15];
  }
  return text;
}

std::string to_hex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  return to_hex(canonical.digest, sizeof(canonical.digest));
}

}  // namespace

uint64_t xxh3_64(const void* data, size_t bytes) {
  return XXH3_64bits(data, bytes);
}

std::string xxh3_128_hex(const void* data, size_t bytes) {
  return to_hex(XXH3_128bits(data, bytes));
}

std::string sha256_hex(std::string_view data) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  KLA_CHECK(EVP_Digest(data.data(), data.size(), digest, &length, EVP_sha256(), nullptr) == 1,
            "SHA-256");
  return to_hex(digest, length);
}

std::string sha256_file(const std::string& path) {
  return sha256_hex(read_file(path));
}

struct Xxh3Stream::State {
  XXH3_state_t* state = XXH3_createState();
  ~State() { XXH3_freeState(state); }
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(state_->state);
}
Xxh3Stream::~Xxh3Stream() = default;
void Xxh3Stream::update(const void* data, size_t bytes) {
  XXH3_128bits_update(state_->state, data, bytes);
}
std::string Xxh3Stream::hex() const {
  return to_hex(XXH3_128bits_digest(state_->state));
}

}  // namespace kla
