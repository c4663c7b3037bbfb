// Choice of tokens from logits: penalties, bans, temperature, top-k, top-p, min-p, draw; the same as engine/choice.py.
#pragma once

#include "linear.h"

extern "C" {

// One row's choice; choices.py declares the same. The last nine are those of SamplingParams.
struct Choice {
  const float* logits;                    // [vocabulary]
  const int32_t *ids, *banned, *biased;   // ids: the tokens before, [prompt + answer]
  const float* biases;                    // for each token of `biased`
  int32_t prompt, answer, bans, bias_count;
  double uniform;  // the draw: 0 <= uniform < 1
  double presence_penalty, frequency_penalty;
  int32_t do_sample, top_k, no_repeat_ngram_size;
  float repetition_penalty, temperature, top_p, min_p;
};
}

namespace rungpt {

struct Likely {
  float value;
  int32_t token;
};

// The numbers of one row. A thread keeps them for the next row.
class Row {
 public:
  int choose(const Choice& c, int vocabulary) {
    size_ = vocabulary;
    strips_ = (vocabulary + STRIP - 1) / STRIP;
    values_.resize((size_t)strips_ * STRIP);
    std::memcpy(values_.data(), c.logits, (size_t)vocabulary * sizeof(float));
    std::fill(values_.begin() + vocabulary, values_.end(), -INFINITY);
    penalise(c);
    return c.do_sample ? draw(c) : likeliest(values_.data(), vocabulary);
  }

 private:
  static constexpr int STRIP = 64;   // numbers whose largest is noted, so that most strips need no second look
  static constexpr int FIRST = 256;  // likeliest tokens that are tried first for top-p
  static constexpr int BLOCK = 256;  // weights that are summed before the sums are cumulated

  // Calls change(token, times) once for each token among `ids`.
  template <class F>
  void each(const int32_t* ids, int count, F change) {
    times_.resize(size_);
    auto known = [&](int i) { return ids[i] >= 0 && ids[i] < size_; };
    for (int i = 0; i < count; i++)
      if (known(i)) times_[ids[i]]++;
    for (int i = 0; i < count; i++)
      if (known(i) && times_[ids[i]]) {
        change(ids[i], times_[ids[i]]);
        times_[ids[i]] = 0;
      }
  }

  void penalise(const Choice& c) {
    float* x = values_.data();
    auto ban = [&](int token) {
      if (token >= 0 && token < size_) x[token] = -INFINITY;
    };
    if (c.repetition_penalty != 1)
      each(c.ids, c.prompt + c.answer, [&](int token, int) {
        x[token] = x[token] > 0 ? x[token] / c.repetition_penalty : x[token] * c.repetition_penalty;
      });
    if (c.presence_penalty != 0 || c.frequency_penalty != 0)
      each(c.ids + c.prompt, c.answer,
           [&](int token, int times) { x[token] += (float)(-c.presence_penalty - c.frequency_penalty * times); });
    for (int i = 0; i < c.bias_count; i++)
      if (c.biased[i] >= 0 && c.biased[i] < size_) x[c.biased[i]] += c.biases[i];
    const int before = c.no_repeat_ngram_size - 1, count = c.prompt + c.answer;  // tokens before the last of an n-gram
    for (int i = 0; c.no_repeat_ngram_size && i + before < count; i++)
      if (!std::memcmp(c.ids + i, c.ids + count - before, before * sizeof(int32_t))) ban(c.ids[i + before]);
    for (int i = 0; i < c.bans; i++) ban(c.banned[i]);
  }

  int draw(const Choice& c) {
    float* x = values_.data();
    tops_.resize(strips_);
    largest_ = -INFINITY;
    for (int s = 0; s < strips_; s++) {
      f16v top = splat(-INFINITY);
      for (int i = s * STRIP; i < (s + 1) * STRIP; i += LANES) {
        const f16v v = load(x + i) / c.temperature;
        store(x + i, v);
        top = maximum(top, v);
      }
      tops_[s] = highest(top);
      largest_ = std::max(largest_, tops_[s]);
    }
    if (largest_ == -INFINITY) return 0;  // all are banned
    const bool by_k = c.top_k && c.top_k < size_;
    if (!by_k && c.top_p >= 1 && c.min_p <= 0) return draw_from_all(c.uniform);
    if (by_k || c.top_p < 1)
      keep_top(by_k ? c.top_k : 0, c.top_p);
    else
      collect(largest_ + std::log(c.min_p) - 1e-3f);
    double total = 0;
    std::sort(likely_.begin(), likely_.end(), [](Likely a, Likely b) { return a.token < b.token; });
    for (const Likely& one : likely_) total += kept_weight(one, c.min_p);
    double sum = 0;
    int last = 0;
    for (const Likely& one : likely_) {
      const float weight = kept_weight(one, c.min_p);
      if (weight > 0) last = one.token;
      if ((sum += weight) > c.uniform * total) return one.token;
    }
    return last;
  }

  // Probability relative to the likeliest token's.
  float weight(float x) const { return x == largest_ ? 1.0f : std::exp(x - largest_); }
  f16v weights(int i) const {
    const f16v v = load(values_.data() + i);
    return v == largest_ ? splat(1.0f) : exp2((v - largest_) * LOG2E);
  }
  float kept_weight(const Likely& one, float min_p) const {
    const float w = weight(one.value);
    return w >= min_p ? w : 0;
  }

  double sum_of_block(int i) const {
    f16v sums = {};
    for (int end = std::min(i + BLOCK, strips_ * STRIP); i < end; i += LANES) sums += weights(i);
    return total(sums);
  }

  // likely_: all tokens with at least this number, in the vocabulary's order.
  void collect(float bound) {
    likely_.clear();
    for (int s = 0; s < strips_; s++) {
      if (!(tops_[s] >= bound)) continue;
      for (int i = s * STRIP; i < std::min(size_, (s + 1) * STRIP); i++)
        if (values_[i] >= bound) likely_.push_back({values_[i], i});
    }
  }

  // likely_: the n likeliest tokens in any order; of equally likely ones the first.
  void take_likeliest(int n) {
    float bound = -INFINITY;
    if (n < strips_) {  // n strips have a number of at least the n-th largest top
      sorted_tops_ = tops_;
      std::nth_element(sorted_tops_.begin(), sorted_tops_.begin() + n - 1, sorted_tops_.end(), std::greater<float>());
      bound = sorted_tops_[n - 1];
    }
    collect(bound);
    if (n >= (int)likely_.size()) return;
    std::nth_element(likely_.begin(), likely_.begin() + n, likely_.end(), likelier);
    likely_.resize(n);
  }

  // likely_: the top_k likeliest tokens (0: all), without those that follow the likeliest ones with a mass of top_p.
  void keep_top(int top_k, float top_p) {
    double all = 0;
    for (int i = 0; !top_k && i < strips_ * STRIP; i += BLOCK) all += sum_of_block(i);
    for (int n = top_k ? top_k : std::min(FIRST, size_);; n = std::min(8 * n, size_)) {
      take_likeliest(n);
      if (top_p >= 1) return;
      std::sort(likely_.begin(), likely_.end(), likelier);
      if (top_k)
        for (const Likely& one : likely_) all += weight(one.value);
      double before = 0;
      for (size_t i = 0; i < likely_.size(); i++) {
        if (i && before >= top_p * all) return likely_.resize(i);
        before += weight(likely_[i].value);
      }
      if (top_k || n == size_) return;
    }
  }

  int draw_from_all(double uniform) {
    const int padded = strips_ * STRIP;
    masses_.clear();
    double mass = 0;
    for (int i = 0; i < padded; i += BLOCK) masses_.push_back(mass += sum_of_block(i));
    const double wanted = uniform * mass;
    const size_t found = std::upper_bound(masses_.begin(), masses_.end(), wanted) - masses_.begin();
    const int block = (int)std::min(found, masses_.size() - 1);
    double sum = block ? masses_[block - 1] : 0;
    int last = block * BLOCK;
    for (int i = block * BLOCK; i < std::min(padded, (block + 1) * BLOCK); i += LANES) {
      const f16v some = weights(i);
      for (int lane = 0; lane < LANES; lane++) {
        if (some[lane] > 0) last = i + lane;
        if ((sum += some[lane]) > wanted) return i + lane;
      }
    }
    return last;  // sums in another order may round to a little less
  }

  static bool likelier(const Likely& a, const Likely& b) {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
  }

  int size_ = 0, strips_ = 0;
  float largest_ = 0;
  Lines<float> values_;  // [strips, STRIP]: logits, penalised and divided by the temperature; then -infinity
  Lines<float> tops_, sorted_tops_;  // [strips]: the largest number of each strip
  std::vector<int32_t> times_;       // [vocabulary]: zeros between two uses
  std::vector<Likely> likely_;
  std::vector<double> masses_;  // cumulated, of blocks
};

}  // namespace rungpt
