// nearest_code for one CPU instruction set: see nearest_code.h for the contract.
//
// Codes are packed once per call, [vector of codes][1 + D][lanes]: row 0 holds ||c||^2 / 2, row 1 + d the
// d-th component, so that a tile of kTileRows x kTileVectors starts its accumulators from row 0 and then
// takes one fused multiply-add per component, the x component broadcast. The cost of a code is thereby always
// the same chain of operations, whatever the tile. Each row keeps, per lane, the least cost so far, its code
// and the least cost but that one; lanes are compared once at the end.
//
// A cost is rounded by as much as its row and code are long, a distance only by as much as they differ. So
// the winner counts where the runner-up is further behind than rounding reaches (`certain`); the few rows
// where it is not meet all codes once more, difference by difference. If most rows of a block are such ones
// (rows and codes far from the origin, codes that lie on each other), the next blocks go without costs.
#include "common/parallel.h"
#include "common/tiles.h"
#include "nearest_code/nearest_code.h"
#include "segment_sum/segment_sum_cpu.h"

namespace solid::SOLID_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 4;  // 6 x 4 accumulators, 4 codes and 1 broadcast of 32 registers
#else
constexpr int kTileVectors = 2;  // 6 x 2 accumulators, 2 codes and 1 broadcast of 16 registers
#endif
constexpr int kTileRows = 6;
// Rows and their state (2 vectors each) stay in the first-level cache beside a tile's codes.
constexpr int kBlockRows = 96;

constexpr int64_t kLongestPrefetch =
    1024;  // bytes of a row: a block of longer ones would not stay in the cache

constexpr int kByDifference = 15;  // blocks: one whose costs decide nothing takes half as long again

// The least cost so far of one row, lane by lane, its code, and the least cost of the other codes.
template <class T>
struct Best {
  Vector<T> cost;
  Mask<T> code;
  Vector<T> second;
};

// The code of the least cost, and how near another one came: nothing costs less than `second` but the code.
template <class T>
struct Winner {
  int64_t code;
  T cost, second;
};

enum class By { kCost, kDifference };  // what a search compares

struct Screen;

// One of the blocks that a counter has announced.
SOLID_INLINE bool take_turn(int* blocks) {
  const bool any = __atomic_load_n(blocks, __ATOMIC_RELAXED) > 0;
  if (any) __atomic_fetch_sub(blocks, 1, __ATOMIC_RELAXED);
  return any;
}

template <class T>
struct Problem {
  const T* x;
  const T* codebook;
  const T* packed;
  T* quantized;
  T* distance;
  int64_t x_stride, dim, num_codes, padded;  // padded: num_codes, to whole vectors
  const Screen* screen;                      // null: every code is compared exactly
  // Blocks to come that go without screening, and without costs; neither changes a result.
  int* unscreened;
  int* by_difference;
};

// Costs, or squared distances, of R rows against P vectors of packed codes; the rows' states take them in.
template <class T, By by, int R, int P>
__attribute__((noinline)) void tile(const T* const* rows, const T* packed, int64_t dim, int64_t first_code,
                                    Best<T>* best) {
  const T *row[R], *codes[P];
  Vector<T> cost[R][P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) codes[p] = packed + p * (dim + 1) * kLanes<T>;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    row[r] = rows[r];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) cost[r][p] = by == By::kCost ? load(codes[p]) : Vector<T>{};
  }
  for (int64_t d = 0; d < dim; ++d) {
    Vector<T> code[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) code[p] = load(codes[p] += kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T component = row[r][d];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        if constexpr (by == By::kCost) {
          cost[r][p] -= code[p] * component;
        } else {
          const Vector<T> difference = component - code[p];
          cost[r][p] += difference * difference;
        }
      }
    }
  }
  Mask<T> number = lane_numbers<T>() + Word<T>(first_code);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p, number += Word<T>(kLanes<T>)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Mask<T> less = cost[r][p] < best[r].cost;
      if constexpr (by == By::kCost) {
        const Vector<T> other = less ? best[r].cost : cost[r][p];
        best[r].second = other < best[r].second ? other : best[r].second;
      }
      best[r].cost = less ? cost[r][p] : best[r].cost;
      best[r].code = less ? number : best[r].code;
    }
  }
}

template <class T, By by, int P>
SOLID_INLINE void tile_of(int count, const T* const* rows, const T* packed, int64_t dim, int64_t first_code,
                          Best<T>* best) {
  switch (count) {
    case 1:
      return tile<T, by, 1, P>(rows, packed, dim, first_code, best);
    case 2:
      return tile<T, by, 2, P>(rows, packed, dim, first_code, best);
    case 3:
      return tile<T, by, 3, P>(rows, packed, dim, first_code, best);
    case 4:
      return tile<T, by, 4, P>(rows, packed, dim, first_code, best);
    case 5:
      return tile<T, by, 5, P>(rows, packed, dim, first_code, best);
    default:
      return tile<T, by, 6, P>(rows, packed, dim, first_code, best);
  }
}

// All rows of a block against P vectors of codes.
template <class T, By by, int P>
void sweep(int count, const T* const* rows, const T* packed, int64_t dim, int64_t first_code, Best<T>* best) {
  for (int at = 0; at < count; at += kTileRows)
    tile_of<T, by, P>(count - at, rows + at, packed, dim, first_code, best + at);
}

// The least cost of all lanes, the lowest code on a tie.
template <class T>
SOLID_INLINE Winner<T> winner_of(Best<T> best) {
#pragma GCC unroll 8
  for (int distance = kLanes<T> / 2; distance > 0; distance /= 2) {
    const Mask<T> turned = (lane_numbers<T>() + Word<T>(distance)) % Word<T>(kLanes<T>);
    const Best<T> other{shuffle(best.cost, best.cost, turned), shuffle(best.code, best.code, turned),
                        shuffle(best.second, best.second, turned)};
    const Mask<T> better = (other.cost < best.cost) | ((other.cost == best.cost) & (other.code < best.code));
    const Vector<T> loser = better ? best.cost : other.cost;
    best.second = other.second < best.second ? other.second : best.second;
    best.second = loser < best.second ? loser : best.second;
    best.cost = better ? other.cost : best.cost;
    best.code = better ? other.code : best.code;
  }
  return {best.code[0], best.cost[0], best.second[0]};
}

template <class T>
SOLID_INLINE T sum_lanes(Vector<T> v) {
#pragma GCC unroll 8
  for (int distance = kLanes<T> / 2; distance > 0; distance /= 2)
    v += shuffle(v, v, (lane_numbers<T>() + Word<T>(distance)) % Word<T>(kLanes<T>));
  return v[0];
}

// Copies the chosen code and measures its distance directly: the expansion would cancel. Returns ||x||^2.
template <class T>
SOLID_INLINE T finish(const Problem<T>& p, int64_t row, int64_t code) {
  const T* x = p.x + row * p.x_stride;
  const T* c = p.codebook + code * p.dim;
  T* q = p.quantized + row * p.dim;
  Vector<T> sum{}, squares{};
  int64_t d = 0;
  for (; d + kLanes<T> <= p.dim; d += kLanes<T>) {
    const Vector<T> entry = load(c + d), component = load(x + d);
    const Vector<T> difference = component - entry;
    store(q + d, entry);
    sum += difference * difference;
    squares += component * component;
  }
  T distance = sum_lanes<T>(sum), norm = sum_lanes<T>(squares);
  for (; d < p.dim; ++d) {
    const T difference = x[d] - c[d];
    q[d] = c[d];
    distance += difference * difference;
    norm += x[d] * x[d];
  }
  p.distance[row] = distance;
  return norm;
}

// How far rounding reaches, in costs, for r = ||x|| + the distance of a code. A code that is as near is no
// longer than r, so with u half an epsilon its cost is computed with an error below (2 D + 2) u r^2, and the
// winner's too; half the squared distances that a search by difference compares have errors below
// (D + 3) u r^2 / 2 each. All four, and the rounding of r itself, stay below (6 D + 16) u r^2; the floor is
// above what underflow hides.
template <class T>
constexpr T kEpsilon = sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52);
template <class T>
constexpr T kReachFloor = sizeof(T) == 4 ? T(0x1p-100) : T(0x1p-900);
template <class T>
constexpr T kLargestSquare = sizeof(T) == 4 ? T(1e38) : T(1e307);  // below it no cost overflows

template <class T>
SOLID_INLINE T rounding_reach(int64_t dim) {
  return T(3 * dim + 8) * kEpsilon<T>;
}

// Whether the winner would also win by differences, which is what the contract asks for.
template <class T>
SOLID_INLINE bool certain(const Winner<T>& winner, int64_t dim, T norm, T distance) {
  const T r = T(__builtin_sqrt(norm)) + T(__builtin_sqrt(distance));
  return r * r < kLargestSquare<T> &&
         winner.second > winner.cost + (rounding_reach<T>(dim) * (r * r) + kReachFloor<T>);
}

}  // namespace
}  // namespace solid::SOLID_ISA

#if defined(__AVX512BF16__)
#  include "nearest_code/nearest_code_cpu_screen.h"
#endif

namespace solid::SOLID_ISA {
namespace {

// Every row against every code.
template <class T, By by>
void search_rows(const Problem<T>& p, int count, const T* const* rows, Winner<T>* winners) {
  Best<T> best[kBlockRows];
  for (int i = 0; i < count; ++i) {
    best[i].cost = best[i].second = Vector<T>{} + T(__builtin_inf());
    best[i].code = Mask<T>{};
  }
  constexpr int kWidth = kTileVectors * kLanes<T>;
  int64_t code = 0;
  for (; code + kWidth <= p.padded; code += kWidth)
    sweep<T, by, kTileVectors>(count, rows, p.packed + code * (p.dim + 1), p.dim, code, best);
  const T* rest = p.packed + code * (p.dim + 1);
  switch ((p.padded - code) / kLanes<T>) {
    case 1:
      sweep<T, by, 1>(count, rows, rest, p.dim, code, best);
      break;
    case 2:
      sweep<T, by, (kTileVectors < 3 ? 1 : 2)>(count, rows, rest, p.dim, code, best);
      break;
    case 3:
      sweep<T, by, (kTileVectors < 3 ? 1 : 3)>(count, rows, rest, p.dim, code, best);
      break;
    default:
      break;
  }
  for (int i = 0; i < count; ++i) winners[i] = winner_of(best[i]);
}

template <class T>
SOLID_INLINE void find_winners(const Problem<T>& p, int count, const T* const* rows, Winner<T>* winners) {
  search_rows<T, By::kCost>(p, count, rows, winners);
}

#if defined(__AVX512BF16__)
// Screens the rows chunk by chunk; if a chunk gives up often, so would the next, and the rest goes without,
// as do the next kUnscreened blocks.
void search_screened(const Screen& screen, const Problem<float>& p, int count, const float* const* rows,
                     Winner<float>* winners) {
  const float* left_rows[kBlockRows];
  int left[kBlockRows];
  int left_count = 0;
  int at = 0;
  bool hopeless = take_turn(p.unscreened);
  while (!hopeless && count - at > kFewestLanes) {
    const int size = int(least(count - at, screen.vectors * 16));
    const int missing = screen_chunk(screen, size, rows + at, winners + at, left + left_count);
    for (int i = 0; i < missing; ++i) left[left_count + i] += at;
    left_count += missing;
    at += size;
    hopeless = 2 * missing > size;
    if (hopeless) __atomic_store_n(p.unscreened, kUnscreened, __ATOMIC_RELAXED);
  }
  for (; at < count; ++at) left[left_count++] = at;
  if (left_count == 0) return;
  Winner<float> found[kBlockRows];
  for (int i = 0; i < left_count; ++i) left_rows[i] = rows[left[i]];
  search_rows<float, By::kCost>(p, left_count, left_rows, found);
  for (int i = 0; i < left_count; ++i) winners[left[i]] = found[i];
}

SOLID_INLINE void find_winners(const Problem<float>& p, int count, const float* const* rows,
                               Winner<float>* winners) {
  if (p.screen != nullptr)
    search_screened(*p.screen, p, count, rows, winners);
  else
    search_rows<float, By::kCost>(p, count, rows, winners);
}
#endif

// The next block's rows, and what this block will write, are on their way while it is searched.
template <class T>
void prefetch_rows(const Problem<T>& p, int64_t first, int64_t last) {
  const int64_t bytes = p.dim * int64_t(sizeof(T));
  if (bytes > kLongestPrefetch) return;
  for (int64_t row = first; row < last; ++row) {
    const uintptr_t written = reinterpret_cast<uintptr_t>(p.quantized + row * p.dim);
    const uintptr_t read =
        reinterpret_cast<uintptr_t>(p.x + row * p.x_stride) + kBlockRows * p.x_stride * sizeof(T);
    for (int64_t at = 0; at < bytes; at += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(written + at), 1);
      __builtin_prefetch(reinterpret_cast<const void*>(read + at), 0);
    }
  }
}

template <class T>
void search_block(const Problem<T>& p, const bool* mask, int64_t first, int64_t last, int64_t* index) {
  int64_t valid[kBlockRows];
  Winner<T> winners[kBlockRows];
  const T* rows[kBlockRows];
  int count = 0;
  for (int64_t row = first; row < last; ++row) {
    if (mask != nullptr && !mask[row]) {
      index[row] = 0;
      p.distance[row] = 0;
      for (int64_t d = 0; d < p.dim; ++d) p.quantized[row * p.dim + d] = 0;
      continue;
    }
    valid[count] = row;
    rows[count++] = p.x + row * p.x_stride;
  }
  if (count == 0) return;
  prefetch_rows(p, first, last);
  if (!take_turn(p.by_difference)) {
    find_winners(p, count, rows, winners);
    int doubtful = 0;
    for (int i = 0; i < count; ++i) {
      const int64_t row = valid[i];
      index[row] = winners[i].code;
      const T norm = finish(p, row, winners[i].code);
      if (certain(winners[i], p.dim, norm, p.distance[row])) continue;
      valid[doubtful] = row;
      rows[doubtful++] = rows[i];
    }
    if (2 * doubtful > count) __atomic_store_n(p.by_difference, kByDifference, __ATOMIC_RELAXED);
    count = doubtful;
  }
  if (count == 0) return;
  search_rows<T, By::kDifference>(p, count, rows, winners);
  for (int i = 0; i < count; ++i) {
    index[valid[i]] = winners[i].code;
    finish(p, valid[i], winners[i].code);
  }
}

// One vector of codes: row 0 their half squared norms. The lanes past the last code hold +infinity, so that
// neither a cost nor a distance of theirs is below it.
template <class T>
void pack_codes(const T* codebook, int64_t num_codes, int64_t dim, int64_t first, T* packed) {
  const T* c = codebook + first * dim;
  const int64_t present = least(num_codes - first, kLanes<T>);
  T* to = packed + kLanes<T>;
  int64_t d = 0;
  for (; present == kLanes<T> && d + kLanes<T> <= dim; d += kLanes<T>) {
    Vector<T> square[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) square[i] = load(c + i * dim + d);
    transpose<T>(square);
    for (int i = 0; i < kLanes<T>; ++i) store(to + (d + i) * kLanes<T>, square[i]);
  }
  for (; d < dim; ++d)
    for (int lane = 0; lane < kLanes<T>; ++lane)
      to[d * kLanes<T> + lane] = lane < present ? c[lane * dim + d] : T(__builtin_inf());
  Vector<T> half{};
  for (d = 0; d < dim; ++d) {
    const Vector<T> component = load(to + d * kLanes<T>);
    half += component * component;
  }
  half *= T(0.5);
  for (int64_t lane = present; lane < kLanes<T>; ++lane) half[lane] = T(__builtin_inf());
  store(packed, half);
}

template <class T>
Status nearest_code(const NearestCode& args) {
  if (args.num_codes < 1 || args.dim < 1 || args.rows < 0) return Status::kBadArgument;
  const int64_t dim = args.dim;
  const int64_t padded = (args.num_codes + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  T* packed = static_cast<T*>(args.workspace);
  Problem<T> problem{};
  problem.x = static_cast<const T*>(args.x), problem.x_stride = args.x_stride;
  problem.codebook = static_cast<const T*>(args.codebook), problem.packed = packed;
  problem.quantized = static_cast<T*>(args.quantized), problem.distance = static_cast<T*>(args.distance);
  problem.dim = dim, problem.num_codes = args.num_codes, problem.padded = padded;
  int by_difference = 0;
  problem.by_difference = &by_difference;
#if defined(__AVX512BF16__)
  Screen screen;
  int unscreened = 0;
  problem.unscreened = &unscreened;
  int32_t* pairs = nullptr;
  if constexpr (sizeof(T) == 4) {
    pairs = reinterpret_cast<int32_t*>(packed + padded * (dim + 1));
    if (plan_screen(packed, pairs, args.rows, dim, padded, &screen)) problem.screen = &screen;
  }
#endif
  constexpr int64_t kCodesPerBlock = 2048;  // are packed in the time that a thread takes to start
  const int64_t pack_blocks = args.rows > 0 ? (padded + kCodesPerBlock - 1) / kCodesPerBlock : 0;
  for_each_block(pack_blocks, args.threads, [&](int64_t block) {
    const int64_t last = least((block + 1) * kCodesPerBlock, padded);
    for (int64_t first = block * kCodesPerBlock; first < last; first += kLanes<T>) {
      T* to = packed + first * (dim + 1);
      pack_codes(problem.codebook, args.num_codes, dim, first, to);
#if defined(__AVX512BF16__)
      if constexpr (sizeof(T) == 4)
        if (problem.screen != nullptr) screen_codes(to, dim, pairs + first * (screen.words + 1));
#endif
    }
  });
  // A thread that sleeps takes as long to wake as this many steps take: too little work stays with one
  // thread.
  constexpr int64_t kStepsPerThread = 4000000, kStepsPerRow = 1500;
  const int64_t useful = args.rows * (padded * dim + kStepsPerRow) / kStepsPerThread + 1;
  const int threads = int(least(args.threads, useful));
  for_each_block((args.rows + kBlockRows - 1) / kBlockRows, threads, [&](int64_t block) {
    const int64_t first = block * kBlockRows;
    const int64_t last = first + kBlockRows < args.rows ? first + kBlockRows : args.rows;
    search_block(problem, args.mask, first, last, args.index);
  });
  if (args.counts != nullptr)
    sum_by_code(problem.x, args.x_stride, args.rows, dim, args.index, args.mask, problem.distance,
                args.num_codes, args.counts, static_cast<T*>(args.sums), args.threads);
  return Status::kOk;
}

}  // namespace

Status nearest_code_float(const NearestCode& args) { return nearest_code<float>(args); }
Status nearest_code_double(const NearestCode& args) { return nearest_code<double>(args); }

}  // namespace solid::SOLID_ISA
