// The convolution of conv3x3_cpu.cpp for one instruction set. That file includes this one several
// times, each with other values of
//   FASTSTY_ISA    the namespace to fill,
//   LANES          floats in a vector register,
//   ACCUMULATORS   vectors of sums that a product keeps in registers.

namespace faststy {
namespace {
namespace FASTSTY_ISA {

#define INLINE __attribute__((always_inline)) inline

template <int N>
struct Vector {
  typedef float type __attribute__((vector_size(4 * N)));
};
template <>
struct Vector<1> {
  typedef float type;
};

template <typename T>
INLINE T load(const float* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
INLINE void store(float* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

typedef Vector<LANES>::type vec;

// G g, Bᵀ d and Aᵀ m of Lavin & Gray for one line; the tile takes one after another each way.
template <typename T>
INLINE void transform_weight(const T* g, int64_t step, T* out, int64_t out_step) {
  const T even = (g[0] + g[2 * step]) * (1.f / 6), odd = g[step] * (1.f / 6);
  const T outer = g[0] * (1.f / 24) + g[2 * step] * (1.f / 6), inner = g[step] * (1.f / 12);
  out[0] = g[0] * 0.25f;
  out[out_step] = -even - odd;
  out[2 * out_step] = odd - even;
  out[3 * out_step] = outer + inner;
  out[4 * out_step] = outer - inner;
  out[5 * out_step] = g[2 * step];
}

template <typename T>
INLINE void transform_input(T* d, int64_t step) {
  T &a = d[0], &b = d[step], &c = d[2 * step], &e = d[3 * step], &f = d[4 * step];
  T& g = d[5 * step];
  const T p = f - 4.f * c, q = e - 4.f * b, r = f - c, s = 2.f * (e - b);
  a = 4.f * a - 5.f * c + f;
  g = 4.f * b - 5.f * e + g;
  b = p + q;
  c = p - q;
  e = r + s;
  f = r - s;
}

template <typename T>
INLINE void transform_output(const T* m, int64_t step, T* y, int64_t y_step) {
  const T p = m[step] + m[2 * step], q = m[step] - m[2 * step];
  const T r = m[3 * step] + m[4 * step], s = m[3 * step] - m[4 * step];
  y[0] = m[0] + p + r;
  y[y_step] = q + 2.f * s;
  y[2 * y_step] = p + 4.f * r;
  y[3 * y_step] = q + 8.f * s + m[5 * step];
}

// Weights of one input channel, w [K, C, 3, 3], to u [36, C, padded K].
void weights(const Conv& conv, int64_t c) {
  for (int64_t k = 0; k < conv.padded; k += LANES) {
    float lanes[9][LANES] = {};
    for (int64_t lane = 0; lane < std::min<int64_t>(LANES, conv.k - k); ++lane) {
      for (int i = 0; i < 9; ++i) lanes[i][lane] = conv.w[((k + lane) * conv.c + c) * 9 + i];
    }
    vec g[9], half[18], u[36];
    for (int i = 0; i < 9; ++i) g[i] = load<vec>(lanes[i]);
    for (int j = 0; j < 3; ++j) transform_weight(g + j, 3, half + j, 3);
    for (int i = 0; i < 6; ++i) transform_weight(half + 3 * i, 1, u + 6 * i, 1);
    for (int i = 0; i < 36; ++i) store(conv.u + (i * conv.c + c) * conv.padded + k, u[i]);
  }
}

// Channels of a tile of 6 x 6 positions to v [36, TILES, all], N at a time from `c` on while there
// are so many. Returns where it stopped.
template <int N>
INLINE int64_t read_channels(const float* const* rows, const int64_t* cols, int64_t c, int64_t end,
                             float* v, int64_t all) {
  typedef typename Vector<N>::type T;
  for (; c + N <= end; c += N) {
    T d[36];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) d[6 * i + j] = load<T>(rows[i] + cols[j] + c);
      transform_input(d + 6 * i, 1);
    }
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      transform_input(d + j, 6);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) store(v + (6 * i + j) * TILES * all + c, d[6 * i + j]);
    }
  }
  return c;
}

// [P, C] @ [C, N vectors], with the sums in registers.
template <int N, int P>
INLINE void multiply(const float* v, const float* u, float* m, int64_t c, int64_t k) {
  vec sums[P][N] = {};
  for (int64_t i = 0; i < c; ++i) {
    vec columns[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) columns[n] = load<vec>(u + i * k + n * LANES);
#pragma GCC unroll 24
    for (int p = 0; p < P; ++p) {
      const vec x = v[p * c + i] - vec{};
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[p][n] += x * columns[n];
    }
  }
#pragma GCC unroll 24
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(m + p * k + n * LANES, sums[p][n]);
  }
}

template <int N>
INLINE void multiply_tiles(const float* v, const float* u, float* m, int64_t c, int64_t k) {
  constexpr int P = ACCUMULATORS / N;
  static_assert(TILES % P == 0);
  for (int t = 0; t < TILES; t += P) multiply<N, P>(v + t * c, u, m + t * k, c, k);
}

void multiply_plane(const float* v, const float* u, float* m, int64_t c, int64_t k) {
  for (int64_t done = 0; done < k;) {
    const int64_t left = (k - done) / LANES;
    const int64_t n = left % 3 == 0 ? 3 : std::min<int64_t>(left, 4);
    if (n == 1) multiply_tiles<1>(v, u + done, m + done, c, k);
    if (n == 2) multiply_tiles<2>(v, u + done, m + done, c, k);
    if (n == 3) multiply_tiles<3>(v, u + done, m + done, c, k);
    if (n == 4) multiply_tiles<4>(v, u + done, m + done, c, k);
    done += n * LANES;
  }
}

// Sums of results and of their squares, less a pivot: the first of the results.
struct Sums {
  vec pivot, sum, square;
  bool begun;
};

// One pixel, `lanes` of its channels from `place` on. Few of them (RAGGED) are moved by fours.
template <bool RESIDUAL, bool RAGGED>
INLINE void write_pixel(const Conv& conv, int64_t place, int64_t lanes, vec z) {
  constexpr int FOURS = LANES / 4;
  float part[LANES] = {};
  if constexpr (RESIDUAL) {
    const float* residual = conv.residual + place;
    if constexpr (RAGGED) {
      for (int i = 0; i < FOURS && 4 * i + 4 <= lanes; ++i) {
        std::memcpy(part + 4 * i, residual + 4 * i, 16);
      }
      for (int64_t l = lanes & ~3; l < lanes; ++l) part[l] = residual[l];
      residual = part;
    }
    z += load<vec>(residual);
  }
  const vec low = conv.slope == 0.f ? vec{} : z * conv.slope;  // 0 · -∞ would be NaN
  z = z < 0.f ? low : z;  // false for NaN: it passes through
  if constexpr (RAGGED) {
    store(part, z);
    for (int i = 0; i < FOURS && 4 * i + 4 <= lanes; ++i) {
      std::memcpy(conv.y + place + 4 * i, part + 4 * i, 16);
    }
    for (int64_t l = lanes & ~3; l < lanes; ++l) conv.y[place + l] = part[l];
  } else {
    store(conv.y + place, z);
  }
}

// One vector of output channels of a tile: to y, and into the sums.
template <bool RESIDUAL, bool RAGGED>
INLINE void write_tile(const Conv& conv, const Tile& tile, const float* m, int64_t k, Sums* sums) {
  vec in[36], half[24], out[16];
#pragma GCC unroll 36
  for (int i = 0; i < 36; ++i) in[i] = load<vec>(m + i * TILES * conv.padded + k);
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) transform_output(in + j, 6, half + j, 6);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) transform_output(half + 6 * i, 1, out + 4 * i, 1);
  const bool whole = tile.height == 4 && tile.width == 4;
  if (sums != nullptr) {
    if (!sums->begun) {
      sums->pivot = out[0];
      sums->begun = true;
    }
    vec sum = {}, square = {};
    if (whole) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const vec d = out[i] - sums->pivot;
        sum += d;
        square += d * d;
      }
    } else {
      for (int i = 0; i < tile.height; ++i) {
        for (int j = 0; j < tile.width; ++j) {
          const vec d = out[4 * i + j] - sums->pivot;
          sum += d;
          square += d * d;
        }
      }
    }
    sums->sum += sum;
    sums->square += square;
  }
  const int64_t vectors = tile.n * conv.padded + k;
  const vec scale = load<vec>(conv.scale + vectors), bias = load<vec>(conv.bias + vectors);
  const int64_t lanes = std::min<int64_t>(LANES, conv.k - k);
  if (whole) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const int64_t place = (tile.place + i * conv.width + j) * conv.k + k;
        write_pixel<RESIDUAL, RAGGED>(conv, place, lanes, out[4 * i + j] * scale + bias);
      }
    }
  } else {
    for (int i = 0; i < tile.height; ++i) {
      for (int j = 0; j < tile.width; ++j) {
        const int64_t place = (tile.place + i * conv.width + j) * conv.k + k;
        write_pixel<RESIDUAL, RAGGED>(conv, place, lanes, out[4 * i + j] * scale + bias);
      }
    }
  }
}

// As it says, of several tiles.
template <bool RESIDUAL, bool RAGGED>
void write_tiles(const Conv& conv, const Tile* tiles, int64_t count, const float* m, int64_t k,
                 Sums* sums) {
  for (int64_t t = 0; t < count; ++t) {
    write_tile<RESIDUAL, RAGGED>(conv, tiles[t], m + t * conv.padded, k, sums);
  }
}

// A tile of 6 x 6 positions copied to room [36, c]: zero beyond the borders, and where `gate`, if there
// is one, is not positive.
void copy_tile(const Input& input, const float* const* rows, const int64_t* cols, float* room) {
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 6; ++j, room += input.c) {
      if (rows[i] == nullptr || cols[j] < 0) {
        std::fill_n(room, input.c, 0.f);
        continue;
      }
      const float* from = rows[i] + cols[j];
      if (input.gate == nullptr) {
        std::copy_n(from, input.c, room);
        continue;
      }
      const float* gate = input.gate + (from - input.x);
      for (int64_t c = 0; c < input.c; ++c) room[c] = gate[c] > 0.f ? from[c] : 0.f;
    }
  }
}

// Tiles first … last − 1, at most TILES; v and m are room for their transforms, `room` for a tile.
void convolve(const Conv& conv, int64_t first, int64_t last, float* v, float* m, float* room,
              double* moments) {
  Tile tiles[TILES];
  const int64_t count = last - first;
  int64_t pixels = 0;
  for (int64_t t = 0; t < count; ++t) {
    const Tile tile = tiles[t] = tile_at(conv, first + t);
    pixels += tile.height * tile.width;
    float* to = v + t * conv.c;
    for (const Input& input : conv.inputs) {
      const float* rows[6];
      int64_t cols[6];
      bool copied = input.gate != nullptr;
      for (int i = 0; i < 6; ++i) {
        const int64_t row = conv.rows[tile.y + i], col = conv.cols[tile.x + i];
        const float* plane = input.x + tile.n * conv.rows_in * conv.cols_in * input.c;
        rows[i] = row < 0 ? nullptr : plane + row * conv.cols_in * input.c;
        cols[i] = col * input.c;
        copied |= row < 0 || col < 0;
      }
      if (copied) {
        copy_tile(input, rows, cols, room);
        for (int i = 0; i < 6; ++i) {
          rows[i] = room + 6 * i * input.c;
          cols[i] = i * input.c;
        }
      }
      int64_t c = read_channels<LANES>(rows, cols, 0, input.c, to, conv.c);
      if constexpr (LANES > 8) c = read_channels<8>(rows, cols, c, input.c, to, conv.c);
      if constexpr (LANES > 4) c = read_channels<4>(rows, cols, c, input.c, to, conv.c);
      read_channels<1>(rows, cols, c, input.c, to, conv.c);
      to += input.c;
    }
  }
  for (int i = 0; i < 36; ++i) {
    multiply_plane(v + i * TILES * conv.c, conv.u + i * conv.c * conv.padded,
                   m + i * TILES * conv.padded, conv.c, conv.padded);
  }
  for (int64_t k = 0; k < conv.padded; k += LANES) {
    const int64_t lanes = std::min<int64_t>(LANES, conv.k - k);
    if (lanes <= 0) break;
    Sums sums = {};
    Sums* wanted = moments == nullptr ? nullptr : &sums;
    if (conv.residual == nullptr) {
      (lanes == LANES ? write_tiles<false, false> : write_tiles<false, true>)(conv, tiles, count, m,
                                                                             k, wanted);
    } else {
      (lanes == LANES ? write_tiles<true, false> : write_tiles<true, true>)(conv, tiles, count, m, k,
                                                                            wanted);
    }
    for (int64_t l = 0; wanted != nullptr && l < lanes; ++l) {
      const double mean = double(sums.sum[l]) / pixels;
      moments[2 * (k + l)] = sums.pivot[l] + mean;
      moments[2 * (k + l) + 1] = sums.square[l] - sums.sum[l] * mean;
    }
  }
}

#undef INLINE

}  // namespace FASTSTY_ISA
}  // namespace
}  // namespace faststy
