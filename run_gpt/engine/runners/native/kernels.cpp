// Forward pass of decoder-only models on an x86-64 CPU: one call runs any mix of prompts and decoding sequences.
//
// Weights lie in panels of 16 outputs, so that a vector register holds one number for each of them and a product needs
// no horizontal sums. Quantised weights have a scale (and a minimum) for each 16 or 32 inputs, as in GGUF (see Coding);
// their inputs are quantised to 8 bits with a scale for each 32 of a row, as llama.cpp does it, so that rows do not
// disturb each other. All else is fp32: sums, norms, rotations, softmax. Threads run the pass together, part by part.

#include <malloc.h>
#include <sys/mman.h>

#include <new>
#include <tuple>

#include "attention.h"
#include "blocks.h"
#include "context.h"
#include "experts.h"
#include "linear.h"
#include "packing.h"
#include "sampling.h"

using namespace rungpt;

extern "C" {

Context* rungpt_context(int threads) { return new (std::nothrow) Context(threads); }

void rungpt_free(Context* context) { delete context; }

int64_t rungpt_matrix_bytes(int format, int outputs, int inputs) {
  return (int64_t)panel_bytes(format, inputs) * panels(outputs);
}

float rungpt_pack(int format, const float* weights, int outputs, int inputs, uint8_t* data, int panel, int step) {
  return pack(format, weights, outputs, inputs, data, panel, step);
}

int rungpt_pack_blocks(int format, int type, const uint8_t* rows, int outputs, int inputs, uint8_t* data, int panel,
                       int step) {
  return pack_blocks(format, type, rows, outputs, inputs, data, panel, step);
}

// Bytes of the keys; the values take as many.
int64_t rungpt_cache_bytes(const Model* m) {
  return (int64_t)m->slots * slot_places(*m) * padded_size(*m) * element_bytes(*m);
}

// Runs one linear layer alone: x [rows, inputs] -> out [rows, outputs].
void rungpt_linear(Context* c, const Matrix* matrix, const float* x, int rows, float* out) {
  c->inputs.resize(rows, matrix->inputs);
  c->team.run([&] {
    c->team.loop(rows, 1,
                 [&](int r) { c->inputs.put(matrix->format, r, x + (size_t)r * matrix->inputs, matrix->inputs); });
    product<false>(c->team, *matrix, c->inputs, rows, out, matrix->outputs);
    release_tiles();
  });
}

// The likeliest token of each row of logits [rows, vocabulary], or -1 where a number is NaN.
void rungpt_likeliest(Context* c, const float* logits, int rows, int vocabulary, int32_t* tokens) {
  auto choose = [&](int r) { tokens[r] = likeliest(logits + (size_t)r * vocabulary, vocabulary); };
  c->team.run([&] { c->team.loop(rows, 1, choose); }, rows == 1);
}

// The chosen token of each row.
void rungpt_choose(Context* c, const Choice* choices, int rows, int vocabulary, int32_t* tokens) {
  auto choose = [&](int r) {
    thread_local Row row;
    tokens[r] = row.choose(choices[r], vocabulary);
  };
  c->team.run([&] { c->team.loop(rows, 1, choose); }, rows == 1);
}

// Rows of a matrix as fp32: [rows, inputs].
void rungpt_unpack(const Matrix* matrix, const int64_t* rows, int count, float* out) {
  for (int i = 0; i < count; i++) unpack_row(*matrix, (int)rows[i], out + (size_t)i * matrix->inputs);
}

// Reserves address space of `bytes` bytes: zeros, which take memory only where they are written. Null if there is none.
// `dense`: all of it will be written and read in order, so that huge pages pay off. A cache is sparse: a short sequence
// would take a huge page for each head. Dense memory begins with a huge page, as a file that is mapped there must.
void* rungpt_reserve(int64_t bytes, int dense) {
  const int64_t huge = dense ? 1 << 21 : 0;
  void* p = mmap(nullptr, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  if (dense) {
    uint8_t *first = (uint8_t*)p, *start = (uint8_t*)(((uintptr_t)p + huge - 1) / huge * huge);
    uint8_t* end = start + (bytes + 4095) / 4096 * 4096;
    if (start > first) munmap(first, start - first);
    if (end < first + bytes + huge) munmap(end, first + bytes + huge - end);
    p = start;
  }
  madvise(p, bytes, dense ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return p;
}

// Puts the first bytes of a file in the place of reserved memory, or zeros if `file` is negative. The pages of the file
// can only be read; every process that maps it shares them. False if the system refuses.
int rungpt_map(void* p, int64_t bytes, int file) {
  const int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  if (mmap(p, bytes, file < 0 ? PROT_READ | PROT_WRITE : PROT_READ, flags | MAP_FIXED, file, 0) == MAP_FAILED) return 0;
  madvise(p, bytes, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_READ
  if (file >= 0) madvise(p, bytes, MADV_POPULATE_READ);
#endif
  return 1;
}

// Returns freed memory to the system, which the C library would keep for later.
void rungpt_trim() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

void rungpt_unreserve(void* p, int64_t bytes) { munmap(p, bytes); }

// Returns the memory of one slot to the system.
void rungpt_release(const Model* model, int slot) {
  const size_t page = 4096, bytes = rungpt_cache_bytes(model) / model->slots;
  for (uint8_t* cache : {model->keys, model->values}) {
    const uintptr_t start = ((uintptr_t)cache + bytes * slot + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)cache + bytes * (slot + 1)) / page * page;
    if (start < end) madvise((void*)start, end - start, MADV_DONTNEED);
  }
}

// Copies the first `length` positions of one slot into another; in rings, those of them that are still there.
void rungpt_copy(const Model* model, int source, int target, int length) {
  const Model& m = *model;
  for (int layer = 0; layer < m.layers; layer++)
    for (int head = 0; head < m.kv_heads; head++) {
      const size_t blocks = (std::min(length, m.layer[layer].kept) + LANES - 1) / LANES, element = element_bytes(m);
      std::memcpy(keys_of(m, layer, target, head), keys_of(m, layer, source, head),
                  blocks * LANES * m.head_size * element);
      std::memcpy(values_of(m, layer, target, head), values_of(m, layer, source, head),
                  blocks * LANES * padded_size(m) * element);
    }
}

// Runs `count` tokens, each at its position of its slot; tokens of one slot follow each other. Their keys and values
// are written to the cache. loras: null, or for each token the layers of its adapter, or null.
// logits: [wanted, vocabulary], for the tokens with the numbers in `which`.
// states: [runs, hidden], sums over each run's tokens of the hidden states after the last norm; `ends`: end of each.
// alone: on the caller's thread only; the sums are the same.
void rungpt_forward(Context* c, int alone, const Model* model, int count, const int32_t* tokens, const int32_t* slots,
                    const int32_t* positions, const LoraLayer* const* loras, int wanted, const int32_t* which,
                    float* logits, int runs, const int32_t* ends, float* states) {
  const Model& m = *model;
  const int size = m.head_size, q_width = m.heads * size, kv_width = m.kv_heads * size, wide = q_width + 2 * kv_width;
  const int shared = m.heads / m.kv_heads, together = std::max(1, QUERIES / shared), padded = padded_size(m);
  c->inputs.resize(std::max(count, wanted), std::max({m.hidden, q_width, m.intermediate}));
  c->x.resize((size_t)count * m.hidden);
  c->branch.resize((size_t)count * m.hidden);
  c->wide.resize((size_t)count * wide);
  c->attended.resize((size_t)count * q_width);
  c->active.resize((size_t)count * m.intermediate);
  for (int l = 0; l < m.layers; l++)
    if (m.layer[l].experts) c->routes.resize(*m.layer[l].experts, m.hidden, count);
  if (loras) {
    c->extra.resize((size_t)count * 2 * m.intermediate);
    c->extra_of.assign(count, 0);
  }
  c->segments.clear(), c->segment_of.clear();
  for (int i = 0; i < count; i++) {
    const bool follows = i > 0 && slots[i] == slots[i - 1] && positions[i] == positions[i - 1] + 1;
    if (follows && c->segments.back().count < together)
      c->segments.back().count++;
    else
      c->segments.push_back({i, 1, positions[i]});
    c->segment_of.push_back((int)c->segments.size() - 1);
  }
  const size_t sums_size = Softmax::size(together * shared, padded);
  c->plan(m, alone ? 1 : c->team.threads(), sums_size);
  float *x = c->x.data(), *qkv = c->wide.data(), *attended = c->attended.data(), *active = c->active.data();

  auto pass = [&] {
    Team& team = c->team;
    Inputs& inputs = c->inputs;
    const int grain = std::max(1, count / (4 * team.size()));
    Lines<float> normed(std::max(m.hidden, q_width)), middle, whole(sums_size);

    auto norm_of = [&](int i, const Norm& norm) -> const float* {
      const float* row = x + (size_t)i * m.hidden;
      if (norm.kind == NO_NORM) return row;
      apply_norm(norm, row, normed.data());
      return normed.data();
    };
    auto norm_in = [&](const Matrix& next, const Norm& norm, int rows, auto row_of) {
      team.loop(rows, std::max(1, rows / (4 * team.size())),
                [&](int i) { inputs.put(next.format, i, norm_of(row_of(i), norm), m.hidden); });
    };
    auto same = [](int i) { return i; };
    // Additions of adapters: a separate part, so that it costs nothing without an adapter.
    auto adapt = [&](auto add) {
      if (!loras) return;
      team.loop(count, grain, [&](int i) {
        if (loras[i]) add(i, loras[i]);
      });
    };
    // x += a branch's row, normed and scaled where the model does so.
    auto add_row = [&](int i, const Norm& norm) {
      float *to = x + (size_t)i * m.hidden, *from = c->branch.data() + (size_t)i * m.hidden;
      if (norm.kind != NO_NORM) apply_norm(norm, from, from);
      for (int j = 0; j < m.hidden; j++) to[j] += m.residual_scale * from[j];
    };
    // x += the product of the rows in `inputs`, as a branch; `add`: see adapt.
    auto add_branch = [&](const Matrix& matrix, const Norm& norm, auto add) {
      if (norm.kind == NO_NORM && m.residual_scale == 1) {
        product<true>(team, matrix, inputs, count, x, m.hidden);
        return adapt([&](int i, const LoraLayer* lora) { add(x + (size_t)i * m.hidden, i, lora); });
      }
      float* branch = c->branch.data();
      product<false>(team, matrix, inputs, count, branch, m.hidden);
      adapt([&](int i, const LoraLayer* lora) { add(branch + (size_t)i * m.hidden, i, lora); });
      team.loop(count, grain, [&](int i) { add_row(i, norm); });
    };

    // qkv: queries, keys and values of all rows; keys and values are written to the cache.
    auto project = [&](int l) {
      const Layer& layer = m.layer[l];
      norm_in(layer.qkv, layer.norm, count, same);
      product<false>(team, layer.qkv, inputs, count, qkv, wide);
      adapt([&](int i, const LoraLayer* lora) {
        const float* in = norm_of(i, layer.norm);
        float* row = qkv + (size_t)i * wide;
        add_lora(lora[l].q, in, middle, row);
        add_lora(lora[l].k, in, middle, row + q_width);
        add_lora(lora[l].v, in, middle, row + q_width + kv_width);
      });
      // In the order of the attention, so that a row stays with its thread.
      team.loop(count, grain, [&](int item) {
        const int i = count - 1 - item;
        float* row = qkv + (size_t)i * wide;
        if (m.clip > 0)
          for (int j = 0; j < wide; j++) row[j] = std::clamp(row[j], -m.clip, m.clip);
        for (const auto& [norm, at, width] : {std::tuple{&layer.q_norm, 0, q_width}, {&layer.k_norm, q_width, kv_width}})
          for (int h = 0; norm->kind != NO_NORM && h < width / norm->size; h++)
            apply_norm(*norm, row + at + (size_t)h * norm->size, row + at + (size_t)h * norm->size);
        if (layer.cos) {
          const size_t angles = (size_t)positions[i] * (m.rotated / 2);
          for (int h = 0; h < m.heads + m.kv_heads; h++)
            rotate(row + (size_t)h * size, layer.cos + angles, layer.sin + angles, m.rotated, m.pairs);
        }
        const bool last = i + 1 == count || slots[i + 1] != slots[i];
        for (int h = 0; h < m.kv_heads; h++)
          write_cache(m, l, slots[i], h, positions[i], row + q_width + h * size, row + q_width + kv_width + h * size,
                      last);
      });
    };
    auto pieces_of = [&](int l) -> const Pieces& {
      return *std::find_if(c->pieces.begin(), c->pieces.end(), [&](auto& p) { return p.window == m.layer[l].window; });
    };
    // Sums of a piece, of all its rows.
    auto sums_of = [&](int piece, int h, const Segment& s) {
      return Softmax::at(c->sums.data() + ((size_t)piece * m.kv_heads + h) * sums_size, s.count * shared, padded);
    };
    auto divide = [&](int l, const Softmax& sums, int i, int h) {
      for (int j = 0; j < shared; j++) {
        const float* sinks = m.layer[l].sinks;
        float* out = attended + (size_t)i * q_width + (size_t)(h * shared + j) * size;
        sums.divide(j, size, padded, sinks ? sinks + h * shared + j : nullptr, out);
      }
    };
    auto attention = [&](int l) {
      const Pieces& pieces = pieces_of(l);
      const int number = (int)pieces.all.size();
      team.loop(number * m.kv_heads, 1, [&](int item) {
        // The last segments first: they see the most positions, and the items that are taken last should be short.
        const int piece = number - 1 - item / m.kv_heads, h = item % m.kv_heads;
        const auto [segment, part, parts] = pieces.all[piece];
        const Segment& s = c->segments[segment];
        const float* q = qkv + (size_t)s.first * wide + h * shared * size;
        const Softmax sums = pieces.apart ? sums_of(piece, h, s) : Softmax::at(whole.data(), s.count * shared, padded);
        (m.bf16_cache ? attend<true> : attend<false>)(m, l, slots[s.first], h, s, part, parts, q, wide, sums);
        for (int i = 0; !pieces.apart && i < s.count; i++) divide(l, sums.from(i * shared, padded), s.first + i, h);
      });
    };
    // Adds the sums of the parts that a row sees.
    auto join = [&](int l, int i, const Pieces& pieces) {
      const int segment = c->segment_of[i];
      const Segment& s = c->segments[segment];
      for (int h = 0; h < m.kv_heads; h++) {
        const int first = pieces.first[segment], row = (i - s.first) * shared;
        const Softmax sums = sums_of(first, h, s).from(row, padded);
        for (int p = first + 1; p < pieces.first[segment + 1]; p++)
          sums.add(sums_of(p, h, s).from(row, padded), shared, padded);
        divide(l, sums, i, h);
      }
    };
    auto add_attention = [&](int l) {
      const Matrix& output = m.layer[l].output;
      const Pieces& pieces = pieces_of(l);
      team.loop(count, grain, [&](int item) {
        const int i = count - 1 - item;
        if (pieces.apart) join(l, i, pieces);
        inputs.put(output.format, i, attended + (size_t)i * q_width, q_width);
      });
      add_branch(output, m.layer[l].after_attention, [&](float* row, int i, const LoraLayer* lora) {
        add_lora(lora[l].output, attended + (size_t)i * q_width, middle, row);
      });
    };
    // active: the activations of the MLP; and the experts.
    auto activate_mlp = [&](int l) {
      const Layer& layer = m.layer[l];
      if (layer.experts) {
        norm_in(layer.experts->router, layer.mlp_norm, count, same);
        run_experts(team, *layer.experts, m.activation, m.hidden, inputs, c->routes, count);
        if (!layer.up.data) return;
      }
      adapt([&](int i, const LoraLayer* lora) {
        float* more = c->extra.data() + (size_t)i * 2 * m.intermediate;
        c->extra_of[i] = lora[l].gate.a || lora[l].up.a;
        if (!c->extra_of[i]) return;
        std::memset(more, 0, (size_t)2 * m.intermediate * sizeof(float));
        const float* in = norm_of(i, layer.mlp_norm);
        add_lora(lora[l].gate, in, middle, more);
        add_lora(lora[l].up, in, middle, more + m.intermediate);
      });
      norm_in(layer.up, layer.mlp_norm, count, same);
      const float* extra = loras ? c->extra.data() : nullptr;
      if (m.gated)
        gated_product(team, m.activation, layer.up, inputs, count, active, m.intermediate, extra, c->extra_of.data());
      else
        active_product(team, m.activation, layer.up, inputs, count, active, m.intermediate, extra, c->extra_of.data());
    };
    auto add_mlp = [&](int l) {
      const Layer& layer = m.layer[l];
      const Matrix& down = layer.down;
      if (down.data)
        team.loop(count, grain,
                  [&](int i) { inputs.put(down.format, i, active + (size_t)i * m.intermediate, down.inputs); });
      if (layer.experts) {
        if (down.data) product<false>(team, down, inputs, count, c->branch.data(), m.hidden);
        return team.loop(count, grain, [&](int i) {
          add_experts(*layer.experts, m.hidden, c->routes, i, down.data, c->branch.data() + (size_t)i * m.hidden);
          add_row(i, layer.after_mlp);
        });
      }
      add_branch(down, layer.after_mlp, [&](float* row, int i, const LoraLayer* lora) {
        add_lora(lora[l].down, active + (size_t)i * m.intermediate, middle, row);
      });
    };

    team.loop(count, grain, [&](int i) {
      float* row = x + (size_t)i * m.hidden;
      unpack_row(m.embedding, tokens[i], row);
      for (int j = 0; m.embedding_scale != 1 && j < m.hidden; j++) row[j] *= m.embedding_scale;
      for (int j = 0; m.learned && j < m.hidden; j++) row[j] += m.learned[(size_t)positions[i] * m.hidden + j];
      if (m.embedding_norm.kind != NO_NORM) apply_norm(m.embedding_norm, row, row);
    });
    for (int l = 0; l < m.layers; l++) {
      project(l);
      attention(l);
      if (m.parallel) activate_mlp(l);  // before x changes
      add_attention(l);
      if (!m.parallel) activate_mlp(l);
      add_mlp(l);
    }
    team.loop(runs, 1, [&](int r) {
      float* sum = states + (size_t)r * m.hidden;
      std::memset(sum, 0, m.hidden * sizeof(float));
      for (int i = r ? ends[r - 1] : 0; i < ends[r]; i++) {
        const float* state = norm_of(i, m.norm);
        for (int j = 0; j < m.hidden; j++) sum[j] += state[j];
      }
    });
    norm_in(m.head, m.norm, wanted, [&](int i) { return which[i]; });
    product<false>(team, m.head, inputs, wanted, logits, m.vocabulary);
    if (m.logit_scale != 1 || m.logit_cap > 0)
      team.loop(wanted, 1, [&](int i) {
        float* row = logits + (size_t)i * m.vocabulary;
        for (int j = 0; j < m.vocabulary; j++) {
          row[j] *= m.logit_scale;
          if (m.logit_cap > 0) row[j] = m.logit_cap * std::tanh(row[j] / m.logit_cap);
        }
      });
    release_tiles();
  };
  c->team.run(pass, alone);
}
}
