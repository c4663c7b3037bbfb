// Threads that run a pass together.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
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

// Threads that run one function together, or leave it to the caller's. Between its loops they wait for each other;
// between calls they sleep.
class Team {
 public:
  explicit Team(int threads) : threads_(threads), size_(threads) {
    for (int i = 1; i < threads; i++) helpers_.emplace_back([this] { help(); });
  }

  ~Team() {
    work_ = nullptr;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& helper : helpers_) helper.join();
  }

  void run(const std::function<void()>& work, bool alone = false) {
    size_.store(alone ? 1 : threads_, std::memory_order_relaxed);
    if (!alone) {
      work_ = &work;
      epoch_.fetch_add(1, std::memory_order_release);
      epoch_.notify_all();
    }
    work();
  }

  // Calls f(i) for 0 <= i < n, each once, on whichever thread is free; returns on all threads when all are done.
  template <class F>
  void loop(int n, int grain, F f) {
    for (int from; (from = next_.fetch_add(grain, std::memory_order_relaxed)) < n;)
      for (int i = from; i < std::min(n, from + grain); i++) f(i);
    unsigned phase = phase_.load(std::memory_order_relaxed);
    const int size = this->size();  // now: once all have arrived, the next call may have another
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      next_.store(0, std::memory_order_relaxed);
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
    } else {
      wait_for_change(phase_, phase);
    }
  }

  // How many run the function.
  int size() const { return size_.load(std::memory_order_relaxed); }

 private:
  void help() {
    for (unsigned seen = 0;;) {
      seen = wait_for_change(epoch_, seen);
      if (work_ == nullptr) return;
      (*work_)();
    }
  }

  const int threads_;
  std::atomic<int> size_;
  const std::function<void()>* work_ = nullptr;
  std::vector<std::thread> helpers_;
  alignas(64) std::atomic<unsigned> epoch_{0};
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

}  // namespace rungpt
