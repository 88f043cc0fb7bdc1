// Claims of parts by threads that come late, stay away or fall asleep, and when calls stay on one thread.
#include "../csrc/cpu/team.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>

using namespace fusedlstm::cpu;

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

struct TestPhase {
  int64_t number;
  Barrier after;
};

// Notes what each strand has begun and finished, and whether a part began before its barrier was open.
class Record {
 public:
  Record(const ThreadPlan& plan, const std::array<std::vector<TestPhase>, 2>& phases)
      : plan_(plan), phases_(phases), finished_(plan.threads(), 0), begun_(plan.threads(), 0) {}

  void begin(int64_t strand, const TestPhase& phase) {
    const std::lock_guard<std::mutex> guard(mutex_);
    check(begun_[strand]++ == phase.number, "a part ran twice, or before the one that precedes it");
    const int64_t group = strand / plan_.group_size(), rows = strand / plan_.unit_threads;
    for (int64_t other = 0; other < plan_.threads() && phase.number > 0; ++other) {
      const bool of_group = phases_[group][phase.number - 1].after == Barrier::group;
      const bool meets = of_group ? other / plan_.group_size() == group : other / plan_.unit_threads == rows;
      check(!meets || finished_[other] >= phase.number, "a part ran before its barrier was open");
    }
  }
  void finish(int64_t strand) {
    const std::lock_guard<std::mutex> guard(mutex_);
    ++finished_[strand];
  }
  void check_all_finished() const {
    for (int64_t strand = 0; strand < plan_.threads(); ++strand)
      check(finished_[strand] == static_cast<int64_t>(phases_[strand / plan_.group_size()].size()),
            "a part did not run");
  }

 private:
  const ThreadPlan& plan_;
  const std::array<std::vector<TestPhase>, 2>& phases_;
  std::vector<int64_t> finished_, begun_;
  std::mutex mutex_;
};

std::array<std::vector<TestPhase>, 2> random_phases(std::mt19937& random) {
  std::array<std::vector<TestPhase>, 2> phases;
  for (std::vector<TestPhase>& of_group : phases)
    for (int64_t number = 0, count = 1 + random() % 40; number < count; ++number)
      of_group.push_back({number, random() % 4 == 0 ? Barrier::group : Barrier::rows});
  return phases;
}

void sleep(std::chrono::microseconds time) {
  std::this_thread::sleep_for(time);
}

// `present` threads, of which one comes late; parts now and then take longer than threads spin.
void claim(const ThreadPlan& plan, int64_t present, int seed) {
  std::mt19937 random(seed);
  const std::array<std::vector<TestPhase>, 2> phases = random_phases(random);
  Record record(plan, phases);
  Parts<TestPhase> parts(plan, phases.data());
  const auto run = [&](int64_t strand, const TestPhase& phase) {
    record.begin(strand, phase);
    thread_local std::mt19937 own(seed + strand);
    if (own() % 16 == 0) sleep(std::chrono::microseconds(own() % 3000));
    record.finish(strand);
  };
  std::vector<std::thread> threads;
  for (int64_t home = 0; home < present; ++home)
    threads.emplace_back([&, home] {
      if (home == 1) sleep(std::chrono::milliseconds(2));
      parts.work(home, run);
    });
  for (std::thread& thread : threads) thread.join();
  record.check_all_finished();
}

// A thread in the middle of a part holds up its rows alone, and the others do all that is left.
void go_on_beside_a_sleeper() {
  const ThreadPlan plan{.groups = 1, .unit_threads = 1, .row_threads = 3, .time_block = 1, .packs = false};
  const std::array<std::vector<TestPhase>, 2> phases{
      {{{0, Barrier::rows}, {1, Barrier::rows}, {2, Barrier::rows}}, {}}};
  Parts<TestPhase> parts(plan, phases.data());
  std::atomic<int64_t> done{0};
  std::atomic<bool> asleep{false}, awake{false};
  std::thread sleeper([&] {
    parts.work(2, [&](int64_t strand, const TestPhase& phase) {
      if (strand == 2 && phase.number == 0) {
        asleep = true;
        while (done < 6) sleep(std::chrono::microseconds(100));  // both other rows, whose threads are one
        awake = true;
      }
      ++done;
    });
  });
  while (!asleep) sleep(std::chrono::microseconds(10));
  parts.work(0, [&](int64_t strand, const TestPhase&) {
    check(strand != 2 || awake, "a part of a sleeping thread's rows ran");
    ++done;
  });
  sleeper.join();
  check(done == 9, "not all parts ran");
}

void stay_on_one_thread() {
  using std::chrono::milliseconds;
  const int64_t few = 1'000'000, many = 1'000'000'000;  // 0.1 ms and 100 ms of one thread
  check(team_size(4, few) == 4, "no team at first");
  note_meeting(milliseconds(0));
  check(team_size(4, few) == 4, "no team after a short meeting");
  note_meeting(milliseconds(50));
  check(team_size(4, few) == 1, "a team for a short call after a long meeting");
  check(team_size(4, many) == 4, "no team for a long call after a long meeting");
  sleep(milliseconds(60));
  check(team_size(4, few) == 4, "no second try");
  note_meeting(milliseconds(50));
  note_meeting(milliseconds(50));
  sleep(milliseconds(60));
  check(team_size(4, few) == 1, "as short a time after a third long meeting");
  sleep(milliseconds(150));
  check(team_size(4, few) == 4, "no try after 200 ms");
  note_meeting(milliseconds(0));
  note_meeting(milliseconds(20));
  sleep(milliseconds(30));
  check(team_size(4, few) == 4, "long meetings count as in a row across a short one");
}

void run_all_phases() {
  const ThreadPlan plan{.groups = 2, .unit_threads = 2, .row_threads = 2, .time_block = 1, .packs = false};
  std::mt19937 random(0);
  const std::array<std::vector<TestPhase>, 2> phases = random_phases(random);
  Record record(plan, phases);
  run_team(plan, phases.data(), [&](int64_t strand, const TestPhase& phase) {
    record.begin(strand, phase);
    record.finish(strand);
  });
  record.check_all_finished();
}

}  // namespace

int main() {
  for (int seed = 0; seed < 20; ++seed)
    for (const auto& [groups, units, rows] : {std::array{1, 2, 1}, {1, 1, 4}, {1, 3, 2}, {2, 2, 2}}) {
      const ThreadPlan plan{
          .groups = groups, .unit_threads = units, .row_threads = rows, .time_block = 1, .packs = false};
      for (const int64_t present : {int64_t(1), int64_t(2), plan.threads()}) claim(plan, present, seed);
    }
  go_on_beside_a_sleeper();
  stay_on_one_thread();  // before the first team, which may have met for long
  run_all_phases();
}
