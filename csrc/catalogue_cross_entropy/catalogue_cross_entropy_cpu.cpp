// CPU kernel of catalogue_cross_entropy; the contract is in catalogue_cross_entropy.h.
//
// A block of rows meets the catalogue panel by panel, 96 items at a time. A panel of logits, [rows][96], is
// one product; in it each row is replaced by exp(logit - its largest one in this panel), so that no
// exponential is taken twice and panels do not wait for each other. When all panels are there, their largest
// logits and sums give each row its log-sum-exp, and each (row, panel) the factor that makes gradients of its
// exponentials. A second pass over the panels multiplies by it and takes two more products, for dstate and
// for dtable: three in all, which is what the formula written out takes.
//
// All three products are one routine: tiles of M x N vectors in registers, whose left operand is broadcast.
// Panels have a fixed width, so that its rows lie a constant apart whichever way it is walked.
//
// Panels are divided among the threads in chunks that depend on V alone; dtable belongs to its panel, dstate
// has a partial sum for each chunk.
#include "catalogue_cross_entropy/catalogue_cross_entropy.h"
#include "common/parallel.h"
#include "common/tiles.h"

#if defined(__AVX512BF16__)

// Nothing here uses bfloat16 arithmetic: this level runs the kernel of the one below.
namespace solid::SOLID_ISA {

int64_t catalogue_cross_entropy_workspace(const CatalogueCrossEntropy& call) {
  return avx512::catalogue_cross_entropy_workspace(call);
}
Status catalogue_cross_entropy(const CatalogueCrossEntropy& call) {
  return avx512::catalogue_cross_entropy(call);
}

}  // namespace solid::SOLID_ISA

#else

namespace solid::SOLID_ISA {
namespace {

#  if defined(__AVX512F__) || defined(SOLID_NEON)
constexpr int kSums = 24;        // of 32 registers: the others hold up to 4 vectors and a broadcast
constexpr int kMostVectors = 4;  // of a tile
constexpr int kLogitVectors = 3;
#  else
constexpr int kSums = 12;  // of 16 registers
constexpr int kMostVectors = 2;
constexpr int kLogitVectors = 2;
#  endif
constexpr int64_t kPanel = 96;    // items: whole tiles of every height and width
constexpr int64_t kRowStep = 48;  // of a block's rows, likewise
constexpr int64_t kMostRows = 192;
constexpr int64_t kChunks = 32;  // partial sums of dstate, at most
constexpr int64_t kChunkPanels = 2;

template <int N>
constexpr int kHeight = kSums / N < 12 ? kSums / N : 12;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Sizes, from B, V and D alone, and where in the workspace what lies: what all workers read, then a scratch
// each.
template <class T>
struct Plan {
  int64_t panels, chunk, chunks;  // chunk: panels
  int64_t blocks, rows, room;     // of a block: its rows, and those that there is room for
  int64_t width;                  // D, padded for the widest instruction set
  int64_t state, turned, largest, sums, row_values, kept, partial, scratch, elements;

  explicit Plan(const CatalogueCrossEntropy& call) {
    const bool back = call.weight != nullptr;
    panels = (call.items + kPanel - 1) / kPanel;
    chunk = (panels + kChunks - 1) / kChunks;
    if (chunk < kChunkPanels) chunk = kChunkPanels;
    chunks = (panels + chunk - 1) / chunk;
    int64_t most = back ? kKeptLogits / (panels * kPanel) / kRowStep * kRowStep : kMostRows;
    most = most < kRowStep ? kRowStep : least(most, kMostRows);
    blocks = (call.rows + most - 1) / most;
    rows = blocks > 0 ? (call.rows + blocks - 1) / blocks : 0;
    room = round_up(rows, kRowStep);
    width = round_up(call.dim, 64 / int64_t(sizeof(T)));
    elements = 0;
    state = take(room * width);
    turned = take(call.dim * room);
    largest = take(panels * room);
    sums = take(panels * room);
    row_values = take(3 * room);
    kept = take(back ? panels * room * kPanel : 0);
    partial = take(back ? chunks * room * width : 0);
    const int64_t logits = kRowStep * kPanel, operands = back ? 2 * kPanel * width : 0;
    scratch = call.dim * kPanel + kPanel + (logits > operands ? logits : operands);
    take(call.threads * scratch);
  }

 private:
  int64_t take(int64_t count) {
    const int64_t at = elements;
    elements += count;  // multiples of 64 bytes, as kPanel and kRowStep are of 16 elements
    return at;
  }
};

// c[m][n] = start[m][n] + sum_k a[m][k] b[k][n] for a tile of N vectors: a's elements lie `Across` apart for
// m and `a_step` for k, the rows of b, start and c as said.
template <class T, int N, int64_t Across>
SOLID_APART void product(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t depth,
                         const T* start, int64_t start_step, T* c, int64_t c_step) {
  constexpr int L = kLanes<T>, M = kHeight<N>;
  Vector<T> sum[M][N];
#  pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#  pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[m][n] = load(start + m * start_step + n * L);
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
    Vector<T> row[N];
#  pragma GCC unroll 4
    for (int n = 0; n < N; ++n) row[n] = load(b + n * L);
#  pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const T factor = a[m * Across];
#  pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] += row[n] * factor;
    }
  }
#  pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#  pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(c + m * c_step + n * L, sum[m][n]);
}

// The same for `count` rows of c and `vectors` vectors, in tiles; rows past `count` up to a whole tile are
// written too.
template <class T, int64_t Across, int N = kMostVectors>
void multiply(int64_t count, int64_t vectors, const T* a, int64_t a_step, const T* b, int64_t b_step,
              int64_t depth, const T* start, int64_t start_step, T* c, int64_t c_step) {
  constexpr int L = kLanes<T>;
  for (; vectors >= N; vectors -= N, b += N * L, start += N * L, c += N * L)
    for (int64_t m = 0; m < count; m += kHeight<N>)
      product<T, N, Across>(a + m * Across, a_step, b, b_step, depth, start + m * start_step, start_step,
                            c + m * c_step, c_step);
  if constexpr (N > 1) {
    if (vectors > 0)
      multiply<T, Across, N - 1>(count, vectors, a, a_step, b, b_step, depth, start, start_step, c, c_step);
  }
}

template <class T>
SOLID_INLINE Vector<T> larger(Vector<T> a, Vector<T> b) {
  return a > b ? a : b;
}

// Lane i of the result joins the lanes of v[i].
template <class T, class Join>
SOLID_INLINE Vector<T> joined(Vector<T> (&v)[kLanes<T>], const Join& join) {
  const Mask<T> even = lane_numbers<T>() * 2;
#  pragma GCC unroll 4
  for (int count = kLanes<T> / 2; count > 0; count /= 2)
#  pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      v[i] = join(shuffle(v[2 * i], v[2 * i + 1], even), shuffle(v[2 * i], v[2 * i + 1], even + 1));
  return v[0];
}

template <class T>
constexpr T kLowest = sizeof(T) == 4 ? T(-3.4028234e38) : T(-1.7976931348623157e308);

// A vector of rows of a panel: their largest logits (not below the lowest number), the exponentials of the
// differences, and their sums.
template <class T>
SOLID_APART void exponentials(const T* panel, T* kept, T* largest, T* sums) {
  constexpr int L = kLanes<T>;
  Vector<T> v[L];
#  pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    const T* row = panel + i * kPanel;
    v[i] = load(row);
    for (int64_t j = L; j < kPanel; j += L) v[i] = larger<T>(load(row + j), v[i]);
  }
  // A NaN that this loses comes back with the exponentials.
  store(largest, larger<T>(joined<T>(v, larger<T>), splat(kLowest<T>)));
  for (int i = 0; i < L; ++i) {
    const T* row = panel + i * kPanel;
    T* to = kept + i * kPanel;
    const Vector<T> shift = splat(largest[i]);
    Vector<T> sum{};
#  pragma GCC unroll 2
    for (int64_t j = 0; j < kPanel; j += L) {
      const Vector<T> e = exp_below(load(row + j) - shift);
      store(to + j, e);
      sum += e;
    }
    v[i] = sum;
  }
  store(sums, joined<T>(v, [](Vector<T> a, Vector<T> b) { return a + b; }));
}

template <class T>
struct Call {
  const CatalogueCrossEntropy& call;
  Plan<T> plan;
  T* at;

  explicit Call(const CatalogueCrossEntropy& c) : call(c), plan(c), at(static_cast<T*>(c.workspace)) {}

  const T* table(int64_t item) const { return static_cast<const T*>(call.table) + item * call.dim; }
  int64_t count(int64_t panel) const { return least(kPanel, call.items - panel * kPanel); }
  T* largest(int64_t panel) const { return at + plan.largest + panel * plan.room; }
  T* sums(int64_t panel) const { return at + plan.sums + panel * plan.room; }
  T* kept(int64_t panel) const { return at + plan.kept + panel * plan.room * kPanel; }
  T* partial(int64_t chunk) const { return at + plan.partial + chunk * plan.room * plan.width; }
  T* scratch(int64_t worker) const { return at + plan.elements - (call.threads - worker) * plan.scratch; }
  // Of the block's rows: the target's logit, the weight, and log Z.
  T* target_logits() const { return at + plan.row_values; }
  T* weights() const { return target_logits() + plan.room; }
};

// `count` rows of [., dim] as [., width], the others and the padding zero.
template <class T>
void pad(const T* from, int64_t count, int64_t room, int64_t dim, int64_t width, T* to) {
  for (int64_t i = 0; i < room; ++i, to += width) {
    const int64_t columns = i < count ? dim : 0;
    int64_t d = 0;
    for (; d + kLanes<T> <= columns; d += kLanes<T>) store(to + d, load(from + i * dim + d));
    for (; d < columns; ++d) to[d] = from[i * dim + d];
    zero(to + d, width - d);
  }
}

template <class T>
struct Block {
  const Call<T>& of;
  int64_t first, rows;
  const int64_t* target;

  Block(const Call<T>& c, int64_t block)
      : of(c),
        first(block * c.plan.rows),
        rows(least(c.plan.rows, c.call.rows - first)),
        target(c.call.target + first) {}

  void begin() const {
    const Plan<T>& plan = of.plan;
    const int64_t dim = of.call.dim;
    const T* state = static_cast<const T*>(of.call.state) + first * dim;
    pad(state, rows, plan.room, dim, plan.width, of.at + plan.state);
    pack(Rows<T>(state, false), dim, rows, dim, plan.room, of.at + plan.turned);
    if (of.call.weight == nullptr) return;
    for (int64_t i = 0; i < plan.room; ++i)
      of.weights()[i] = i < rows ? static_cast<const T*>(of.call.weight)[first + i] : T(0);
  }

  // The exponentials of a panel, [room][kPanel], and what is known of its rows.
  void softmax(int64_t panel, T* scratch) const {
    const Plan<T>& plan = of.plan;
    const int64_t dim = of.call.dim, item = panel * kPanel, count = of.count(panel);
    T* turned = scratch;
    T* bias = turned + dim * kPanel;
    T* logits = bias + kPanel;
    T* kept = of.call.weight == nullptr ? nullptr : of.kept(panel);
    pack(Rows<T>(of.table(item), false), dim, count, dim, kPanel, turned);
    zero(bias, kPanel);
    if (of.call.bias != nullptr)
      for (int64_t i = 0; i < count; ++i) bias[i] = static_cast<const T*>(of.call.bias)[item + i];
    // A few rows at a time, whose logits stay in the first-level cache.
    for (int64_t r = 0; r < rows; r += kRowStep) {
      const int64_t few = least(kRowStep, rows - r);
      multiply<T, 1, kLogitVectors>(few, kPanel / kLanes<T>, of.at + plan.turned + r, plan.room, turned,
                                    kPanel, dim, bias, 0, logits, kPanel);
      for (int64_t i = 0; i < few; ++i) {
        T* row = logits + i * kPanel;
        for (int64_t v = count; v < kPanel; ++v) row[v] = -T(__builtin_inff());
        const int64_t at = target[r + i] - item;
        if (at >= 0 && at < count) of.target_logits()[r + i] = row[at];
      }
      for (int64_t i = 0; i < few; i += kLanes<T>)
        exponentials(logits + i * kPanel, kept == nullptr ? logits : kept + (r + i) * kPanel,
                     of.largest(panel) + r + i, of.sums(panel) + r + i);
    }
  }

  // A vector of rows: their losses; the sums become the factors of the gradients.
  void finish(int64_t r) const {
    const Plan<T>& plan = of.plan;
    Vector<T> top = load(of.largest(0) + r), sum{};
    for (int64_t p = 1; p < plan.panels; ++p) top = larger<T>(load(of.largest(p) + r), top);
    for (int64_t p = 0; p < plan.panels; ++p)
      sum += load(of.sums(p) + r) * exp_below(load(of.largest(p) + r) - top);
    for (int64_t i = 0; i < least(kLanes<T>, rows - r); ++i)
      static_cast<T*>(of.call.loss)[first + r + i] =
          T(__builtin_log(double(sum[i]))) + (top[i] - of.target_logits()[r + i]);
    if (of.call.weight == nullptr) return;
    const Vector<T> factor = load(of.weights() + r) / sum;
    for (int64_t p = 0; p < plan.panels; ++p)
      store(of.sums(p) + r, factor * exp_below(load(of.largest(p) + r) - top));
  }

  void gradients(int64_t panel, T* scratch, bool first_of_chunk, T* partial) const {
    const Plan<T>& plan = of.plan;
    constexpr int L = kLanes<T>;
    const int64_t dim = of.call.dim, item = panel * kPanel, count = of.count(panel), width = plan.width;
    T* zeros = scratch + dim * kPanel;
    T* padded = zeros + kPanel;
    T* sums = padded + kPanel * width;
    T* g = of.kept(panel);
    const T* factors = of.sums(panel);
    for (int64_t r = 0; r < rows; ++r) {
      const Vector<T> factor = splat(factors[r]);
      T* row = g + r * kPanel;
#  pragma GCC unroll 6
      for (int64_t j = 0; j < kPanel; j += L) store(row + j, load(row + j) * factor);
      const int64_t at = target[r] - item;
      if (at >= 0 && at < count) row[at] -= of.weights()[r];
    }
    const int64_t vectors = (dim + L - 1) / L;
    const bool whole = dim % L == 0;
    if (of.call.dstate != nullptr) {
      const T* table = of.table(item);
      int64_t step = dim;
      if (!whole) pad(table, count, count, dim, width, padded), table = padded, step = width;
      if (first_of_chunk) zero(partial, plan.room * width);
      multiply<T, kPanel>(rows, vectors, g, 1, table, step, count, partial, width, partial, width);
    }
    if (of.call.dtable == nullptr) return;
    T* dtable = static_cast<T*>(of.call.dtable) + item * dim;
    const bool again = first > 0;
    if (whole && count == kPanel && again) {
      multiply<T, 1>(kPanel, vectors, g, kPanel, of.at + plan.state, width, rows, dtable, dim, dtable, dim);
      return;
    }
    zero(sums, kPanel * width);
    multiply<T, 1>(count, vectors, g, kPanel, of.at + plan.state, width, rows, sums, width, sums, width);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < dim; ++d)
        dtable[i * dim + d] = (again ? dtable[i * dim + d] : T(0)) + sums[i * width + d];
  }

  // dstate of a vector of rows: the chunks' sums, in their order.
  void add_chunks(int64_t r) const {
    const int64_t dim = of.call.dim, width = of.plan.width;
    for (int64_t i = r; i < least(r + kLanes<T>, rows); ++i) {
      T* to = static_cast<T*>(of.call.dstate) + (first + i) * dim;
      for (int64_t d = 0; d < dim; d += kLanes<T>) {
        Vector<T> sum{};
        for (int64_t c = 0; c < of.plan.chunks; ++c) sum += load(of.partial(c) + i * width + d);
        store_some(to + d, sum, dim - d);
      }
    }
  }
};

// A thread that sleeps takes as long to wake as this many steps take.
constexpr int64_t kStepsPerThread = 4000000;

template <class T>
Status run(const CatalogueCrossEntropy& given) {
  const bool back = given.weight != nullptr && (given.dstate != nullptr || given.dtable != nullptr);
  if (given.rows == 0) {
    if (given.dtable != nullptr) zero(static_cast<T*>(given.dtable), given.items * given.dim);
    return Status::kOk;
  }
  const Call<T> call(given);
  const Plan<T>& plan = call.plan;
  const int64_t steps = plan.rows * given.items * given.dim;
  const int threads = int(least(given.threads, steps / kStepsPerThread + 1));
  const auto for_chunks = [&](const auto& body) {
    for_each_worker(plan.chunks, threads, [&](int64_t worker, int64_t chunk) {
      const int64_t end = least((chunk + 1) * plan.chunk, plan.panels);
      for (int64_t panel = chunk * plan.chunk; panel < end; ++panel) body(worker, chunk, panel);
    });
  };
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const Block<T> block(call, b);
    const int64_t groups = (block.rows + kLanes<T> - 1) / kLanes<T>;
    block.begin();
    for_chunks([&](int64_t worker, int64_t, int64_t panel) { block.softmax(panel, call.scratch(worker)); });
    for_each_block(groups, threads, [&](int64_t group) { block.finish(group * kLanes<T>); });
    if (!back) continue;
    for_chunks([&](int64_t worker, int64_t chunk, int64_t panel) {
      block.gradients(panel, call.scratch(worker), panel == chunk * plan.chunk, call.partial(chunk));
    });
    if (given.dstate != nullptr)
      for_each_block(groups, threads, [&](int64_t group) { block.add_chunks(group * kLanes<T>); });
  }
  return Status::kOk;
}

}  // namespace

int64_t catalogue_cross_entropy_workspace(const CatalogueCrossEntropy& call) {
  return call.is_double ? Plan<double>(call).elements * 8 : Plan<float>(call).elements * 4;
}

Status catalogue_cross_entropy(const CatalogueCrossEntropy& call) {
  if (call.items < 1 || call.dim < 1 || call.rows < 0) return Status::kBadArgument;
  return call.is_double ? run<double>(call) : run<float>(call);
}

}  // namespace solid::SOLID_ISA

#endif
