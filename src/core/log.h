// Terminal and log file. One place decides about colours, quietness and escapes; everything else
// calls these. The text goes to the terminal at once and, when a run is open, with a time stamp to
// its log file.
#pragma once

#include <string>

namespace kla::log {

enum class Level { debug, info, warning, error };

void set_terminal_level(Level level);     // -q: warning, -v: debug
void open_file(const std::string& path);  // appended; Error{io}
void close_file();

void debug(const std::string& text);
void info(const std::string& text);     // stdout
void warning(const std::string& text);  // stderr, "warning: "
void error(const std::string& text);    // stderr, "error: "

void set_plain();       // stdout looks like a terminal but is a launcher's: no status line
bool fancy_terminal();  // stdout is a TTY, no NO_COLOR, TERM is not dumb
// Redraws one status line below the log (nothing on a plain terminal). Empty text removes it.
void status_line(const std::string& text);

// Control characters of foreign text made visible, so that no file can move the cursor of a
// terminal.
std::string printable(const std::string& text);

}  // namespace kla::log
