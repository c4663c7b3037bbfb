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

constexpr int SPINS = 1000;  // about 20 microseconds; who waits longer may be keeping the others from this very core

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

// Threads that run one function together, or leave it to the caller's. The function is a sequence of loops, the same on
// each thread. A loop is over when its items are done, whoever did them: a thread that comes late, because another
// program has its core, skips the loops that are over and holds nobody up. Between calls the helpers sleep.
class Team {
 public:
  explicit Team(int threads) : threads_(threads), size_(threads) {
    for (int i = 1; i < threads; i++) helpers_.emplace_back([this] { help(); });
  }

  ~Team() {
    ending_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& helper : helpers_) helper.join();
  }

  void run(const std::function<void()>& work, bool alone = false) {
    size_ = alone ? 1 : threads_;
    next_.store(0, std::memory_order_relaxed);
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
    // Helpers that are still inside are on their way out: there is no item left for them.
    for (int inside = inside_.fetch_and(~OPEN, std::memory_order_acq_rel) & ~OPEN; inside;)
      inside = wait_for_change(inside_, inside);
  }

  // Calls f(i) for 0 <= i < n, each once, on whichever thread is free; returns on all threads when all are done.
  template <class F>
  void loop(int n, int grain, F f) {
    if (n <= 0) return;
    const uint64_t loop = loops_done++;
    uint64_t next = next_.load(std::memory_order_acquire);
    while (next >> 32 == loop && (int)(uint32_t)next < n) {
      if (!next_.compare_exchange_weak(next, next + grain, std::memory_order_acquire)) continue;
      const int from = (int)(uint32_t)next, to = std::min(n, from + grain);
      for (int i = from; i < to; i++) f(i);
      if (done_.fetch_add(to - from, std::memory_order_acq_rel) + to - from == n) {
        done_.store(0, std::memory_order_relaxed);
        next_.store((loop + 1) << 32, std::memory_order_release);
        phase_.store((unsigned)loop + 1, std::memory_order_release);
        phase_.notify_all();
        return;
      }
      next = next_.load(std::memory_order_acquire);
    }
    // Where it is over already, `phase_` is another than `loop`.
    for (unsigned phase = phase_.load(std::memory_order_acquire); phase <= loop;)
      phase = wait_for_change(phase_, phase);
  }

  // How many may run the function.
  int size() const { return size_; }

 private:
  static constexpr int OPEN = 1 << 30;
  inline static thread_local uint64_t loops_done = 0;

  void help() {
    for (unsigned seen = 0;;) {
      seen = wait_for_change(epoch_, seen);
      if (ending_) return;
      int inside = inside_.load(std::memory_order_acquire);
      while (inside & OPEN && !inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
      }
      if (!(inside & OPEN)) continue;  // too late: it is over
      loops_done = 0;
      (*work_)();
      inside_.fetch_sub(1, std::memory_order_acq_rel);
      inside_.notify_all();
    }
  }

  const int threads_;
  int size_;
  bool ending_ = false;
  const std::function<void()>* work_ = nullptr;
  std::vector<std::thread> helpers_;
  alignas(64) std::atomic<unsigned> epoch_{0};
  alignas(64) std::atomic<int> inside_{0};      // helpers that run the function, and OPEN while more may come
  alignas(64) std::atomic<uint64_t> next_{0};   // the number of the loop that runs, and its next item
  alignas(64) std::atomic<int> done_{0};        // items of it that are done
  alignas(64) std::atomic<unsigned> phase_{0};  // the number of the loop that runs, for those who wait for the next one
};

}  // namespace rungpt
