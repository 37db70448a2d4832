// CPU kernel of gru_last_state; the contract is in gru.h.
//
// A vector's lanes are hidden units (or inputs, for x's gradient). At each position the rows of a block of
// sequences whose mask is set are gathered into dense tiles, so that everything is a product of such a tile
// with the weights, at full speed whatever the mask. A tile of kRows rows accumulates r, z and both parts of
// n for one vector of hidden units in registers and goes through the gates there.
//
// Backward, from the last position to the first, with dh the gradient of the state after it and
//   dn = dh (1 - z) (1 - n^2),  dz = dh (h - n) z (1 - z),  dr = dn (W_hn h + b_hn) r (1 - r):
//   dx = [dr dz dn] W_i,  dh <- dh z + [dr dz r.dn] W_h,  dW_i += [dr dz dn]^T x,  dW_h += [dr dz r.dn]^T h.
#include "common/parallel.h"
#include "common/tiles.h"
#include "gru/gru.h"

#if defined(__AVX512BF16__)

// Nothing here uses bfloat16 arithmetic: this level runs the kernel of the one below.
namespace solid::SOLID_ISA {

Status gru_forward(const Gru& gru) { return avx512::gru_forward(gru); }
Status gru_backward(const Gru& gru) { return avx512::gru_backward(gru); }
int64_t gru_workspace(const Gru& gru, bool backward) { return avx512::gru_workspace(gru, backward); }

}  // namespace solid::SOLID_ISA

#else

namespace solid::SOLID_ISA {
namespace {

#  if defined(__AVX512F__) || defined(SOLID_NEON)
constexpr int kRows = 6;  // 6 x 4 accumulators, 3 weights and a broadcast of 32 registers
#  else
constexpr int kRows = 3;  // 3 x 4 accumulators, 3 weights and a broadcast of 16 registers
#  endif
constexpr int kOuterRows = kAccumulators / 2;  // rows of a weight's gradient taken at a time, 2 vectors each
constexpr int64_t kRowStep = 6;                // blocks are a multiple of it, whatever the instruction set
constexpr int64_t kBlock = 72;   // sequences of a block: its gate gradients stay below 48 KB at H = 32
constexpr int64_t kStrips = 16;  // partial sums of the parameters' gradients
constexpr int64_t kLeastStrip = 24;
constexpr int64_t kGates = 3;
constexpr int64_t kParts = 4;  // r, z, n's part of the input, n's part of the state

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

int64_t limited(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Rows of tiles are padded for the widest instruction set, so that sizes do not depend on it.
template <class T>
int64_t padded(int64_t columns) {
  return round_up(columns, 64 / int64_t(sizeof(T)));
}

// Workspace: what all workers read, then a scratch per worker, then a partial gradient per strip.
template <class T>
struct Plan {
  int64_t d, h;   // padded D and H
  int64_t strip;  // sequences per strip
  int64_t strips;
  int64_t block;                     // sequences per block
  int64_t rows;                      // of a tile
  int64_t shared, scratch, partial;  // elements

  Plan(const Gru& gru, bool backward) : d(padded<T>(gru.inputs)), h(padded<T>(gru.hidden)) {
    strip = limited(round_up((gru.batch + kStrips - 1) / kStrips, kRowStep),
                    backward ? kLeastStrip : kRowStep, gru.batch);
    if (strip < 1) strip = 1;
    strips = (gru.batch + strip - 1) / strip;
    block = least(kBlock, strip);
    rows = round_up(block, kRowStep);
    shared = kGates * (gru.inputs + gru.hidden) * h + kParts * h;
    // Active rows' indices, the block's state, and tiles of x, h and the next h.
    scratch = padded<T>(2 * rows) + rows * (d + 3 * h);
    partial = 0;
    if (!backward) return;
    shared += kGates * gru.hidden * (d + h);
    scratch += rows * (d + kParts * h);
    partial = kGates * gru.hidden * (d + h) + kParts * h;
  }

  int64_t bytes(int threads, bool backward) const {
    return (shared + threads * scratch + (backward ? strips * partial : 0)) * int64_t(sizeof(T));
  }
};

template <class T>
struct Call {
  const Gru& gru;
  Plan<T> plan;
  T* panels;  // per vector of hidden units: gate weights [3][D][lanes], then [3][H][lanes]
  T* biases;  // [4][padded H]: r and z of both inputs, n of x, n of h
  T* input;   // backward: weight_input [3H, padded D] and weight_hidden [3H, padded H]
  T* hidden;
  T* scratches;
  T* partials;

  Call(const Gru& g, bool backward) : gru(g), plan(g, backward) {
    panels = static_cast<T*>(g.workspace);
    biases = panels + kGates * (g.inputs + g.hidden) * plan.h;
    input = biases + kParts * plan.h;
    hidden = input + kGates * g.hidden * plan.d;
    scratches = panels + plan.shared;
    partials = scratches + g.threads * plan.scratch;
  }

  T* panel(int64_t v) const { return panels + v * kGates * (gru.inputs + gru.hidden) * kLanes<T>; }
  const T* x(int64_t b, int64_t t) const {
    return static_cast<const T*>(gru.x) + b * gru.x_batch_stride + t * gru.x_time_stride;
  }
  T* state(int64_t b, int64_t t) const {
    return static_cast<T*>(gru.states) + (t * gru.batch + b) * gru.hidden;
  }
};

template <class T>
SOLID_INLINE void copy(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

// Fetches a row of the next position while this one is computed: its start is too far from the last row's for
// the processor to guess (forward 2.0 -> 1.6 ms, backward 5.1 -> 4.3 ms at B = 1024, L = 10, D = H = 32).
template <class T>
SOLID_INLINE void fetch(const T* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + i);
}

template <class T>
void pack_weights(const Call<T>& call, bool backward) {
  const Gru& gru = call.gru;
  const int64_t inputs = gru.inputs, units = gru.hidden, lanes = kLanes<T>;
  const T* wi = static_cast<const T*>(gru.weight_input);
  const T* wh = static_cast<const T*>(gru.weight_hidden);
  for (int64_t first = 0; first < units; first += lanes) {
    const int64_t count = least(lanes, units - first);
    T* panel = call.panel(first / lanes);
    for (int64_t gate = 0; gate < kGates; ++gate) {
      const int64_t row = gate * units + first;
      pack(Rows<T>(wi + row * inputs, false), inputs, count, inputs, lanes, panel + gate * inputs * lanes);
      pack(Rows<T>(wh + row * units, false), units, count, units, lanes,
           panel + (kGates * inputs + gate * units) * lanes);
    }
  }
  const T* bi = static_cast<const T*>(gru.bias_input);
  const T* bh = static_cast<const T*>(gru.bias_hidden);
  zero(call.biases, kParts * call.plan.h);
  for (int64_t j = 0; j < units; ++j) {
    call.biases[j] = bi[j] + bh[j];
    call.biases[call.plan.h + j] = bi[units + j] + bh[units + j];
    call.biases[2 * call.plan.h + j] = bi[2 * units + j];
    call.biases[3 * call.plan.h + j] = bh[2 * units + j];
  }
  if (!backward) return;
  for (int64_t row = 0; row < kGates * units; ++row) {
    copy(wi + row * inputs, inputs, call.input + row * call.plan.d);
    zero(call.input + row * call.plan.d + inputs, call.plan.d - inputs);
    copy(wh + row * units, units, call.hidden + row * call.plan.h);
    zero(call.hidden + row * call.plan.h + units, call.plan.h - units);
  }
}

// f(Width<n>, first row): tiles of kRows rows, then the least that covers the rest. Rows past `rows` hold
// anything.
template <class F>
SOLID_INLINE void for_tiles(int64_t rows, const F& f) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) f(Width<kRows>{}, m);
  if (m == rows) return;
  if (rows - m == 1) return f(Width<1>{}, m);
  if constexpr (kRows > 4) {
    if (rows - m == 2) return f(Width<2>{}, m);
    if (rows - m <= 4) return f(Width<4>{}, m);
  }
  f(Width<kRows>{}, m);
}

template <int M, class T>
struct Gates {
  Vector<T> r[M], z[M], n_input[M], n_hidden[M];  // before the activations
};

// One vector of hidden units for M rows.
template <int M, class T>
SOLID_INLINE Gates<M, T> gates(const Call<T>& call, int64_t v, const T* x, const T* h) {
  constexpr int L = kLanes<T>;
  const int64_t inputs = call.gru.inputs, units = call.gru.hidden, dp = call.plan.d, hp = call.plan.h;
  const T* bias = call.biases + v * L;
  Vector<T> r[M], z[M], n_input[M], n_hidden[M];
  for (int m = 0; m < M; ++m) {
    r[m] = load(bias);
    z[m] = load(bias + hp);
    n_input[m] = load(bias + 2 * hp);
    n_hidden[m] = load(bias + 3 * hp);
  }
  const T* w = call.panel(v);
  for (int64_t k = 0; k < inputs; ++k) {
    const Vector<T> wr = load(w + k * L), wz = load(w + (inputs + k) * L),
                    wn = load(w + (2 * inputs + k) * L);
    for (int m = 0; m < M; ++m) {
      const T value = x[m * dp + k];
      r[m] += value * wr;
      z[m] += value * wz;
      n_input[m] += value * wn;
    }
  }
  w += kGates * inputs * L;
  for (int64_t k = 0; k < units; ++k) {
    const Vector<T> wr = load(w + k * L), wz = load(w + (units + k) * L), wn = load(w + (2 * units + k) * L);
    for (int m = 0; m < M; ++m) {
      const T value = h[m * hp + k];
      r[m] += value * wr;
      z[m] += value * wz;
      n_hidden[m] += value * wn;
    }
  }
  Gates<M, T> found;
  for (int m = 0; m < M; ++m) {
    found.r[m] = sigmoid(r[m]);
    found.z[m] = sigmoid(z[m]);
    found.n_input[m] = n_input[m];
    found.n_hidden[m] = n_hidden[m];
  }
  return found;
}

// next <- the state after a position, for `rows` rows of x and h.
template <class T>
SOLID_APART void step_forward(const Call<T>& call, int64_t rows, const T* x, const T* h, T* next) {
  constexpr int L = kLanes<T>;
  const int64_t dp = call.plan.d, hp = call.plan.h;
  for (int64_t v = 0; v * L < call.gru.hidden; ++v) {
    for_tiles(rows, [&](auto tile, int64_t first) {
      constexpr int M = decltype(tile)::value;
      const auto g = gates<M>(call, v, x + first * dp, h + first * hp);
      for (int m = 0; m < M; ++m) {
        const int64_t at = (first + m) * hp + v * L;
        const Vector<T> n = tanh(g.n_input[m] + g.r[m] * g.n_hidden[m]);
        store(next + at, n + g.z[m] * (load(h + at) - n));
      }
    });
  }
}

// gradients [rows][4][padded H] <- dr, dz, dn, r dn;  dh <- dh z.
template <class T>
SOLID_APART void step_gates_backward(const Call<T>& call, int64_t rows, const T* x, const T* h, T* dh,
                                     T* gradients) {
  constexpr int L = kLanes<T>;
  const int64_t dp = call.plan.d, hp = call.plan.h;
  for (int64_t v = 0; v * L < call.gru.hidden; ++v) {
    for_tiles(rows, [&](auto tile, int64_t first) {
      constexpr int M = decltype(tile)::value;
      const auto g = gates<M>(call, v, x + first * dp, h + first * hp);
      for (int m = 0; m < M; ++m) {
        const int64_t at = (first + m) * hp + v * L;
        T* to = gradients + (first + m) * kParts * hp + v * L;
        const Vector<T> r = g.r[m], z = g.z[m], up = load(dh + at);
        const Vector<T> n = tanh(g.n_input[m] + r * g.n_hidden[m]);
        const Vector<T> dn = up * (1 - z) * (1 - n * n);
        store(to, dn * g.n_hidden[m] * (r * (1 - r)));
        store(to + hp, up * (load(h + at) - n) * (z * (1 - z)));
        store(to + 2 * hp, dn);
        store(to + 3 * hp, dn * r);
        store(dh + at, up * z);
      }
    });
  }
}

// A block of sequences, and a worker's tiles for it.
template <class T>
struct Block {
  const Call<T>& call;
  int64_t first, count;
  int32_t* active;  // sequences of the block whose mask is set at the position at hand
  T* state;         // [rows][padded H]: h forward, dh backward, of every sequence of the block
  T* x;             // tiles of the active rows
  T* h;
  T* next;  // forward: the next state; backward: dh
  T* dx;
  T* gradients;

  Block(const Call<T>& c, int64_t worker, int64_t from, int64_t n) : call(c), first(from), count(n) {
    const Plan<T>& plan = c.plan;
    T* at = c.scratches + worker * plan.scratch;
    active = reinterpret_cast<int32_t*>(at);
    state = at + padded<T>(2 * plan.rows);
    x = state + plan.rows * plan.h;
    h = x + plan.rows * plan.d;
    next = h + plan.rows * plan.h;
    dx = next + plan.rows * plan.h;
    gradients = dx + plan.rows * plan.d;
  }

  int64_t find_active(int64_t t) const {
    const bool* mask = call.gru.mask + first * call.gru.length + t;
    int64_t n = 0;
    for (int64_t b = 0; b < count; ++b) {
      active[n] = int32_t(b);
      n += mask[b * call.gru.length];
    }
    return n;
  }
};

template <class T>
SOLID_INLINE void exchange(T*& a, T*& b) {
  T* const other = a;
  a = b;
  b = other;
}

template <class T>
void forward_block(Block<T> block) {
  const Call<T>& call = block.call;
  const Gru& gru = call.gru;
  const int64_t dp = call.plan.d, hp = call.plan.h, units = gru.hidden;
  zero(block.state, call.plan.rows * hp);
  for (int64_t t = 0; t < gru.length; ++t) {
    const int64_t n = block.find_active(t);
    for (int64_t m = 0; m < n; ++m) {
      copy(call.x(block.first + block.active[m], t), gru.inputs, block.x + m * dp);
      if (t + 1 < gru.length) fetch(call.x(block.first + block.active[m], t + 1), gru.inputs);
    }
    if (gru.states) {
      if (n < block.count) zero(call.state(block.first, t), block.count * units);
      for (int64_t m = 0; m < n; ++m) {
        copy(block.state + block.active[m] * hp, units, call.state(block.first + block.active[m], t));
      }
    }
    if (n == block.count) {
      step_forward(call, n, block.x, block.state, block.next);
      exchange(block.state, block.next);
      continue;
    }
    for (int64_t m = 0; m < n; ++m) copy(block.state + block.active[m] * hp, units, block.h + m * hp);
    step_forward(call, n, block.x, block.h, block.next);
    for (int64_t m = 0; m < n; ++m) copy(block.next + m * hp, units, block.state + block.active[m] * hp);
  }
  T* h = static_cast<T*>(gru.h) + block.first * units;
  for (int64_t b = 0; b < block.count; ++b) copy(block.state + b * hp, units, h + b * units);
}

// f(Width<n>, first column) over all vectors of a row.
template <class T, class F>
SOLID_INLINE void for_columns(int64_t columns, const F& f) {
  constexpr int L = kLanes<T>;
  int64_t c = 0;
  if constexpr (kAccumulators > 8 || kVectorBytes < 64) {
    for (; c + 3 * L < columns; c += 4 * L) f(Width<4>{}, c);
  }
  for (; c + L < columns; c += 2 * L) f(Width<2>{}, c);
  for (; c < columns; c += L) f(Width<1>{}, c);
}

// out [rows, pitch] (+)= gradients of the gates (r, z, and n's part `last`) times w [3H, pitch].
template <bool Add, class T>
SOLID_APART void through_weights(const Call<T>& call, int64_t rows, const T* gradients, int64_t last,
                                 const T* w, int64_t columns, int64_t pitch, T* out) {
  constexpr int L = kLanes<T>;
  const int64_t hp = call.plan.h, units = call.gru.hidden;
  for_columns<T>(columns, [&](auto width, int64_t c) {
    constexpr int V = decltype(width)::value;
    for_tiles(rows, [&](auto tile, int64_t first) {
      constexpr int M = decltype(tile)::value;
      Vector<T> acc[M][V];
      for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v)
          acc[m][v] = Add ? load(out + (first + m) * pitch + c + v * L) : Vector<T>{};
      }
      for (int64_t gate = 0; gate < kGates; ++gate) {
        const T* g = gradients + first * kParts * hp + (gate == 2 ? last : gate) * hp;
        const T* from = w + gate * units * pitch + c;
        for (int64_t j = 0; j < units; ++j) {
          Vector<T> row[V];
          for (int v = 0; v < V; ++v) row[v] = load(from + j * pitch + v * L);
          for (int m = 0; m < M; ++m) {
            const T value = g[m * kParts * hp + j];
            for (int v = 0; v < V; ++v) acc[m][v] += value * row[v];
          }
        }
      }
      for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) store(out + (first + m) * pitch + c + v * L, acc[m][v]);
      }
    });
  });
}

// sums [3H, pitch] += gradients^T in, over the rows in their order.
template <class T>
SOLID_APART void add_outer(const Call<T>& call, int64_t rows, const T* gradients, int64_t last, const T* in,
                           int64_t columns, int64_t pitch, T* sums) {
  constexpr int L = kLanes<T>;
  const int64_t hp = call.plan.h, units = call.gru.hidden;
  const auto vectors = [&](auto width, int64_t c) {
    constexpr int V = decltype(width)::value;
    for (int64_t gate = 0; gate < kGates; ++gate) {
      const T* of_gate = gradients + (gate == 2 ? last : gate) * hp;
      for_runs<kOuterRows>(0, units, [&](auto run, int64_t j) {
        constexpr int N = decltype(run)::value;
        T* to = sums + (gate * units + j) * pitch + c;
        const T* g = of_gate + j;
        Vector<T> acc[N][V];
        for (int n = 0; n < N; ++n) {
          for (int v = 0; v < V; ++v) acc[n][v] = load(to + n * pitch + v * L);
        }
        for (int64_t m = 0; m < rows; ++m) {
          Vector<T> row[V];
          for (int v = 0; v < V; ++v) row[v] = load(in + m * pitch + c + v * L);
          for (int n = 0; n < N; ++n) {
            const T value = g[m * kParts * hp + n];
            for (int v = 0; v < V; ++v) acc[n][v] += value * row[v];
          }
        }
        for (int n = 0; n < N; ++n) {
          for (int v = 0; v < V; ++v) store(to + n * pitch + v * L, acc[n][v]);
        }
      });
    }
  };
  int64_t c = 0;
  for (; c + L < columns; c += 2 * L) vectors(Width<2>{}, c);
  for (; c < columns; c += L) vectors(Width<1>{}, c);
}

// A strip's sums: weight_input [3H, padded D], weight_hidden [3H, padded H], biases [4][padded H].
template <class T>
struct Sums {
  T *input, *hidden, *biases;

  Sums(const Call<T>& call, int64_t strip) {
    input = call.partials + strip * call.plan.partial;
    hidden = input + kGates * call.gru.hidden * call.plan.d;
    biases = hidden + kGates * call.gru.hidden * call.plan.h;
  }
};

template <class T>
void add_parameters(const Block<T>& block, int64_t n, const Sums<T>& sums) {
  const Call<T>& call = block.call;
  const Gru& gru = call.gru;
  const int64_t dp = call.plan.d, hp = call.plan.h;
  if (gru.dweight_input) add_outer(call, n, block.gradients, 2, block.x, gru.inputs, dp, sums.input);
  if (gru.dweight_hidden) add_outer(call, n, block.gradients, 3, block.h, gru.hidden, hp, sums.hidden);
  if (!gru.dbias_input && !gru.dbias_hidden) return;
  // hp fills a cache line: four parts of it are at least 4 vectors.
  for (int64_t at = 0; at < kParts * hp; at += 4 * kLanes<T>) {
    Vector<T> sum[4];
    for (int v = 0; v < 4; ++v) sum[v] = load(sums.biases + at + v * kLanes<T>);
    for (int64_t m = 0; m < n; ++m) {
      for (int v = 0; v < 4; ++v) sum[v] += load(block.gradients + m * kParts * hp + at + v * kLanes<T>);
    }
    for (int v = 0; v < 4; ++v) store(sums.biases + at + v * kLanes<T>, sum[v]);
  }
}

template <class T>
void backward_block(Block<T> block, const Sums<T>& sums) {
  const Call<T>& call = block.call;
  const Gru& gru = call.gru;
  const int64_t dp = call.plan.d, hp = call.plan.h, units = gru.hidden, inputs = gru.inputs;
  T* const dx = static_cast<T*>(gru.dx);
  zero(block.state, call.plan.rows * hp);
  for (int64_t b = 0; b < block.count; ++b) {
    copy(static_cast<const T*>(gru.dh) + (block.first + b) * units, units, block.state + b * hp);
  }
  for (int64_t t = gru.length - 1; t >= 0; --t) {
    const int64_t n = block.find_active(t);
    for (int64_t m = 0; m < n; ++m) {
      const int64_t b = block.first + block.active[m];
      copy(call.x(b, t), inputs, block.x + m * dp);
      copy(call.state(b, t), units, block.h + m * hp);
      if (t > 0) {
        fetch(call.x(b, t - 1), inputs);
        fetch(call.state(b, t - 1), units);
      }
    }
    const bool all = n == block.count;
    T* const dh = all ? block.state : block.next;
    for (int64_t m = 0; m < n && !all; ++m) copy(block.state + block.active[m] * hp, units, dh + m * hp);
    step_gates_backward(call, n, block.x, block.h, dh, block.gradients);
    add_parameters(block, n, sums);
    if (dx) {
      through_weights<false>(call, n, block.gradients, 2, call.input, inputs, dp, block.dx);
      if (!all) {
        for (int64_t b = 0; b < block.count; ++b)
          zero(dx + ((block.first + b) * gru.length + t) * inputs, inputs);
      }
      for (int64_t m = 0; m < n; ++m) {
        copy(block.dx + m * dp, inputs, dx + ((block.first + block.active[m]) * gru.length + t) * inputs);
      }
    }
    if (t == 0) break;
    through_weights<true>(call, n, block.gradients, 3, call.hidden, units, hp, dh);
    for (int64_t m = 0; m < n && !all; ++m) copy(dh + m * hp, units, block.state + block.active[m] * hp);
  }
}

// to[j] <- the sum of a value over the strips, in their order.
template <class T>
void add_strips(const Call<T>& call, const T* first, int64_t count, T* to) {
  zero(to, count);
  for (int64_t strip = 0; strip < call.plan.strips; ++strip) {
    const T* from = first + strip * call.plan.partial;
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }
}

template <class T>
void finish_parameters(const Call<T>& call) {
  const Gru& gru = call.gru;
  const Sums<T> sums(call, 0);
  const int64_t units = gru.hidden, dp = call.plan.d, hp = call.plan.h;
  for_each_block(kGates * units, gru.threads, [&](int64_t row) {
    if (gru.dweight_input) {
      add_strips(call, sums.input + row * dp, gru.inputs,
                 static_cast<T*>(gru.dweight_input) + row * gru.inputs);
    }
    if (gru.dweight_hidden) {
      add_strips(call, sums.hidden + row * hp, units, static_cast<T*>(gru.dweight_hidden) + row * units);
    }
  });
  for (int64_t gate = 0; gate < kGates; ++gate) {
    T* const input = static_cast<T*>(gru.dbias_input);
    T* const hidden = static_cast<T*>(gru.dbias_hidden);
    if (input) add_strips(call, sums.biases + gate * hp, units, input + gate * units);
    if (hidden) add_strips(call, sums.biases + (gate == 2 ? 3 : gate) * hp, units, hidden + gate * units);
  }
}

template <class T>
Status forward(const Gru& gru) {
  const Call<T> call(gru, false);
  pack_weights(call, false);
  const int64_t size = call.plan.block;
  for_each_worker((gru.batch + size - 1) / size, gru.threads, [&](int64_t worker, int64_t b) {
    forward_block(Block<T>(call, worker, b * size, least(size, gru.batch - b * size)));
  });
  return Status::kOk;
}

template <class T>
Status backward(const Gru& gru) {
  const Call<T> call(gru, true);
  const Plan<T>& plan = call.plan;
  pack_weights(call, true);
  for_each_worker(plan.strips, gru.threads, [&](int64_t worker, int64_t strip) {
    const Sums<T> sums(call, strip);
    zero(sums.input, plan.partial);
    const int64_t end = least((strip + 1) * plan.strip, gru.batch);
    for (int64_t b = strip * plan.strip; b < end; b += plan.block) {
      backward_block(Block<T>(call, worker, b, least(plan.block, end - b)), sums);
    }
  });
  finish_parameters(call);
  return Status::kOk;
}

}  // namespace

Status gru_forward(const Gru& gru) { return gru.is_double ? forward<double>(gru) : forward<float>(gru); }

Status gru_backward(const Gru& gru) { return gru.is_double ? backward<double>(gru) : backward<float>(gru); }

int64_t gru_workspace(const Gru& gru, bool backward) {
  if (gru.is_double) return Plan<double>(gru, backward).bytes(gru.threads, backward);
  return Plan<float>(gru, backward).bytes(gru.threads, backward);
}

}  // namespace solid::SOLID_ISA

#endif
