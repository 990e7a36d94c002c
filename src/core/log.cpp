#include "core/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "core/error.h"

namespace kla::log {
namespace {

struct State {
  std::mutex mutex;
  Level level = Level::info;
  bool status_shown = false, plain = false;
  std::shared_ptr<spdlog::logger> file;
};

State& state() {
  static State s;
  return s;
}

spdlog::level::level_enum spdlog_level(Level level) {
  switch (level) {
    case Level::debug:
      return spdlog::level::debug;
    case Level::info:
      return spdlog::level::info;
    case Level::warning:
      return spdlog::level::warn;
    case Level::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

void clear_status(State& s) {
  if (!s.status_shown) return;
  std::fputs("\r\033[K", stdout);
  std::fflush(stdout);
  s.status_shown = false;
}

void write(Level level, const char* prefix, const std::string& text) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  if (s.file) s.file->log(spdlog_level(level), "{}", text);
  if (level < s.level) return;
  clear_status(s);
  std::FILE* stream = level >= Level::warning ? stderr : stdout;
  std::fprintf(stream, "%s%s\n", prefix, text.c_str());
  std::fflush(stream);
}

}  // namespace

void set_terminal_level(Level level) {
  state().level = level;
}

void set_plain() {
  state().plain = true;
}

void open_file(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    auto logger = std::make_shared<spdlog::logger>("run", sink);
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
    logger->set_level(spdlog::level::debug);
    logger->flush_on(spdlog::level::info);
    logger->set_error_handler([](const std::string&) {});  // a full disk must not end the run here
    std::lock_guard lock(state().mutex);
    state().file = logger;
  } catch (const spdlog::spdlog_ex& e) {
    throw Error(Exit::io, "cannot write the log file '" + path + "': " + e.what());
  }
}

void close_file() {
  std::lock_guard lock(state().mutex);
  state().file.reset();
}

void debug(const std::string& text) {
  write(Level::debug, "", text);
}
void info(const std::string& text) {
  write(Level::info, "", text);
}
void warning(const std::string& text) {
  write(Level::warning, "warning: ", text);
}
void error(const std::string& text) {
  write(Level::error, "error: ", text);
}

bool fancy_terminal() {
  static const bool fancy = [] {
    const char* term = std::getenv("TERM");
    const char* plain = std::getenv("NO_COLOR");
    return ::isatty(STDOUT_FILENO) == 1 && !(plain && *plain) && term &&
           std::strcmp(term, "dumb") != 0;
  }();
  return fancy && !state().plain;
}

void status_line(const std::string& text) {
  State& s = state();
  if (!fancy_terminal()) return;
  std::lock_guard lock(s.mutex);
  if (s.level > Level::info) return;
  clear_status(s);
  if (text.empty()) return;
  std::fprintf(stdout, "\r%s\033[K", text.c_str());
  std::fflush(stdout);
  s.status_shown = true;
}

std::string printable(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u != 0x7F) {
      out += c;
      continue;
    }
    char escaped[8];
    std::snprintf(escaped, sizeof(escaped), "\\x%02x", u);
    out += escaped;
  }
  return out;
}

}  // namespace kla::log
