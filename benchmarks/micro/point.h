// A measured point as one line of JSON on the standard output.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>

namespace fusedlstm::micro {

// What measure() of timing.cuh found, for each step of a launch.
struct Times {
  double us, us_min, us_max;  // median and range of the repeats, by events
  double clocks;              // of the first block's multiprocessor, in the last repeat
  int repeats;
  bool ok;  // every block of every launch finished, and none of them found a wrong value
};

class Point {
 public:
  Point& set(const char* name, const char* text) {
    std::string escaped;
    for (const char* at = text; *at; ++at) {
      if (*at == '"' || *at == '\\') escaped += '\\';
      escaped += static_cast<unsigned char>(*at) < ' ' ? ' ' : *at;
    }
    return add(name, '"' + escaped + '"');
  }
  // A number that could not be measured is null, never zero.
  Point& set(const char* name, double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return add(name, std::isfinite(value) ? text : "null");
  }
  Point& set(const char* name, int value) { return add(name, std::to_string(value)); }
  Point& set(const char* name, size_t value) { return add(name, std::to_string(value)); }
  Point& set(const Times& times) {
    return set("us", times.us)
        .set("us_min", times.us_min)
        .set("us_max", times.us_max)
        .set("clocks", times.clocks)
        .set("repeats", times.repeats);
  }

  // At once, so that what was measured survives the end of the process.
  void print(bool ok) {
    std::printf("{%s, \"ok\": %s}\n", fields_.c_str(), ok ? "true" : "false");
    std::fflush(stdout);
  }

 private:
  Point& add(const char* name, const std::string& value) {
    fields_ += (fields_.empty() ? "\"" : ", \"") + std::string(name) + "\": " + value;
    return *this;
  }

  std::string fields_;
};

}  // namespace fusedlstm::micro
