#include "team.h"

#include <pthread.h>

#include <algorithm>

namespace fusedlstm::cpu {
namespace {

// A forked child has none of its parent's OpenMP threads, and a parallel region in it would hang.
std::atomic<bool> in_forked_child{false};
const int fork_is_noticed = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

// A meeting takes some microseconds, or tens where threads wake from sleep.
constexpr Clock::duration kLongMeeting = std::chrono::microseconds(500);
// After a long meeting short calls stay on one thread for as long as it took, then one tries again. Each long
// meeting in a row doubles the time, up to 2^6 times: a single one is chance, and many cost at most a 64th of
// the time.
constexpr int kMostDoublings = 6;
// Of one thread; most run more, and so rather too few calls stay on one thread than too many.
constexpr int64_t kMultiplyAddsPerMicrosecond = 10'000;

std::atomic<int> long_meetings{0};  // in a row
std::atomic<Clock::duration> last_long_meeting{Clock::duration::zero()};
std::atomic<Clock::time_point> alone_until{Clock::time_point::min()};

}  // namespace

int64_t team_size(int64_t threads, int64_t multiply_adds) {
  if (threads == 1 || in_forked_child) return 1;
  const std::chrono::microseconds alone(multiply_adds / kMultiplyAddsPerMicrosecond);
  // A team takes alone / threads, and the meeting.
  const bool short_call = alone * (threads - 1) < last_long_meeting.load(std::memory_order_relaxed) * threads;
  return short_call && Clock::now() < alone_until.load(std::memory_order_relaxed) ? 1 : threads;
}

void note_meeting(Clock::duration wait) {
  if (wait < kLongMeeting) return long_meetings.store(0, std::memory_order_relaxed);
  const int doublings = std::min(long_meetings.fetch_add(1, std::memory_order_relaxed), kMostDoublings);
  last_long_meeting.store(wait, std::memory_order_relaxed);
  alone_until.store(Clock::now() + wait * (1 << doublings), std::memory_order_relaxed);
}

}  // namespace fusedlstm::cpu
