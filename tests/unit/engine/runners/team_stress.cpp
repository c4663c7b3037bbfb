// Many passes of many loops on a team whose helpers come late, stop within a loop, or have nothing to do. Each item is
// counted; a count that is wrong is written to stdout. Built with the thread sanitizer, which sees every race.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "team.h"

using namespace rungpt;

constexpr int PASSES = 2000, LOOPS = 20, ITEMS = 60;

int main() {
  Team team(4);
  std::vector<int> counts(ITEMS), copies(ITEMS);
  int wrong = 0;
  for (int pass = 0; pass < PASSES; pass++) {
    unsigned seed = pass;
    int sizes[LOOPS];
    for (int& size : sizes) size = rand_r(&seed) % 5 ? rand_r(&seed) % ITEMS : 0;
    counts.assign(ITEMS, 0);
    const auto work = [&] {
      for (int k = 0; k < LOOPS; k++) {
        team.loop(sizes[k], 1 + k % 3, [&](int i) {
          counts[i]++;
          if ((i * 7 + pass) % 97 == 0) usleep(20);
        });
        team.loop(ITEMS, 4, [&](int i) { copies[i] = counts[i]; });
      }
    };
    team.run(work, pass % 7 == 0);
    for (int i = 0; i < ITEMS; i++) {
      int expected = 0;
      for (int size : sizes) expected += i < size;
      wrong += counts[i] != expected || copies[i] != expected;
    }
  }
  std::printf("%d wrong\n", wrong);
}
