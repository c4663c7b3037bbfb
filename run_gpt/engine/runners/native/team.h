// Threads that run a pass together.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace rungpt {

constexpr int SPINS = 1000;  // about 20 microseconds; a longer wait may keep the other threads from this core

template <class T>
inline T wait_for_change(const std::atomic<T>& value, T old) {
  for (int spins = 0; spins < SPINS; spins++) {
    const T now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

// Threads that run one function together, or leave it to the caller's thread. The function is a sequence of loops, the
// same on each thread. A loop's items are split into one part for each thread, so that data that a thread wrote in one
// loop is in its core's caches in the next. A thread that has finished its own part helps with the others. A loop is
// over when all its items are done, by any threads. So a thread that comes late, because another program uses its core,
// skips the loops that are over and delays no other thread. Between calls the helpers sleep.
class Team {
 public:
  explicit Team(int threads) : threads_(threads), size_(threads), parts_(threads) {
    for (int i = 1; i < threads; i++) helpers_.emplace_back([this, i] { help(i); });
  }

  ~Team() {
    ending_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& helper : helpers_) helper.join();
  }

  void run(const std::function<void()>& work, bool alone = false) {
    size_ = alone ? 1 : threads_;
    for (Part& part : parts_) part.next.store(0, std::memory_order_relaxed);
    phase_.store(0, std::memory_order_relaxed);
    if (!alone && threads_ > 1) {
      work_ = &work;
      inside_.store(OPEN, std::memory_order_release);
      epoch_.fetch_add(1, std::memory_order_release);
      epoch_.notify_all();
    }
    loops_done = 0;
    work();
    if (alone || threads_ == 1) return;
    // Helpers that are still inside leave soon: there is no item left for them.
    for (int inside = inside_.fetch_and(~OPEN, std::memory_order_acq_rel) & ~OPEN; inside;)
      inside = wait_for_change(inside_, inside);
  }

  // Calls f(i) for 0 <= i < n, each once, on any free thread; returns on all threads when all are done. A thread takes
  // `grain` items at once.
  template <class F>
  void loop(int n, int grain, F f) {
    if (n <= 0) return;
    const uint64_t loop = loops_done++;
    int done = 0;
    for (int k = 0; k < size_; k++) done += do_part(loop, (own_part + k) % size_, n, grain, f);
    if (done && done_.fetch_add(done, std::memory_order_acq_rel) + done == n) {
      done_.store(0, std::memory_order_relaxed);
      phase_.store((unsigned)loop + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    // If the loop is over already, `phase_` is greater than `loop`.
    for (unsigned phase = phase_.load(std::memory_order_acquire); phase <= loop;)
      phase = wait_for_change(phase_, phase);
  }

  // Number of threads that may run the function.
  int size() const { return size_; }

  // Number of threads that run a function which is not left to the caller's thread.
  int threads() const { return threads_; }

 private:
  static constexpr int OPEN = 1 << 30;
  inline static thread_local uint64_t loops_done = 0;
  inline static thread_local int own_part = 0;

  struct alignas(64) Part {
    std::atomic<uint64_t> next{0};  // number of a loop, and number of items of its part that are taken
  };

  // Does the rest of a part; returns its number of items. The number of an earlier loop in `next` means that no thread
  // has begun this part: the earlier loop is over, else this one could not run.
  template <class F>
  int do_part(uint64_t loop, int part, int n, int grain, F& f) {
    const int start = (int)((int64_t)n * part / size_), end = (int)((int64_t)n * (part + 1) / size_);
    std::atomic<uint64_t>& next = parts_[part].next;
    int done = 0;
    for (uint64_t seen = next.load(std::memory_order_relaxed);;) {
      if (seen >> 32 > loop) return done;
      const int from = start + (seen >> 32 == loop ? (int)(uint32_t)seen : 0), to = std::min(end, from + grain);
      if (from >= end) return done;
      const uint64_t taken = loop << 32 | (uint32_t)(to - start);
      if (!next.compare_exchange_weak(seen, taken, std::memory_order_relaxed)) continue;
      for (int i = from; i < to; i++) f(i);
      done += to - from;
      seen = next.load(std::memory_order_relaxed);
    }
  }

  void help(int part) {
    own_part = part;
    for (unsigned seen = 0;;) {
      seen = wait_for_change(epoch_, seen);
      if (ending_) return;
      int inside = inside_.load(std::memory_order_acquire);
      while (inside & OPEN && !inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
      }
      if (!(inside & OPEN)) continue;  // too late: the function is over
      loops_done = 0;
      (*work_)();
      inside_.fetch_sub(1, std::memory_order_acq_rel);
      inside_.notify_all();
    }
  }

  const int threads_;
  int size_;
  std::atomic<bool> ending_{false};
  const std::function<void()>* work_ = nullptr;
  std::vector<Part> parts_;
  std::vector<std::thread> helpers_;
  alignas(64) std::atomic<unsigned> epoch_{0};
  alignas(64) std::atomic<int> inside_{0};      // helpers that run the function, and OPEN while more may come
  alignas(64) std::atomic<int> done_{0};        // items of the running loop that are done
  alignas(64) std::atomic<unsigned> phase_{0};  // number of the running loop, for threads that wait for the next one
};

}  // namespace rungpt
