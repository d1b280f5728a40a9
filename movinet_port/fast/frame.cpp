// What a stream computes for one new frame of one video: its stem, its bottlenecks, and products of a
// matrix and a vector.
//
// Of a bottleneck a compiler makes a dozen loops, with a barrier behind each, and writes the expanded
// frame and reads it again in between. Here it is one function, and a row is expanded when the
// convolution comes to it, and is in the cache then.
//
// Part of the compiled library (extension.cpp) and of packages' own code (package.cpp), which define
// LANES.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include <immintrin.h>
#include <omp.h>

#include "structures.h"

namespace movinet_port {
namespace {

// Where a package calls its kernels, the compiler is told to hurry.
#define INLINE inline __attribute__((always_inline))

template <int lanes>
struct Lanes {
    typedef float Vector __attribute__((vector_size(lanes * 4), aligned(4), may_alias));
};
using Vector = Lanes<LANES>::Vector;

// Rows of a product that are computed at a time. Of two vectors of columns, and of few rows four,
// the sums fill the registers: 32 with AVX-512, else 16.
constexpr int kRows = LANES == 16 ? 14 : 6, kFewRows = LANES == 16 ? 7 : 2;
// Pixels of a row that are convolved at a time.
constexpr int kPixels = LANES == 16 ? 14 : 8;

INLINE int64_t ceil_divide(int64_t n, int64_t by) { return (n + by - 1) / by; }

template <int lanes = LANES>
INLINE typename Lanes<lanes>::Vector load(const float* from) {
    return *reinterpret_cast<const typename Lanes<lanes>::Vector*>(from);
}

template <int lanes = LANES>
INLINE void store(float* to, typename Lanes<lanes>::Vector x) {
    *reinterpret_cast<typename Lanes<lanes>::Vector*>(to) = x;
}

// The larger, and the smaller, of two numbers, each in one instruction, which a compiler must not take
// for a comparison with a number that may be none.
template <int lanes>
INLINE typename Lanes<lanes>::Vector not_below(typename Lanes<lanes>::Vector x,
                                               typename Lanes<lanes>::Vector least) {
#ifdef __AVX512F__
    if constexpr (lanes == 16) return _mm512_max_ps(least, x);
#endif
    if constexpr (lanes == 8) return _mm256_max_ps(least, x);
    if constexpr (lanes == 4) return _mm_max_ps(least, x);
    return least > x ? least : x;
}

template <int lanes>
INLINE typename Lanes<lanes>::Vector not_above(typename Lanes<lanes>::Vector x,
                                               typename Lanes<lanes>::Vector most) {
#ifdef __AVX512F__
    if constexpr (lanes == 16) return _mm512_min_ps(most, x);
#endif
    if constexpr (lanes == 8) return _mm256_min_ps(most, x);
    if constexpr (lanes == 4) return _mm_min_ps(most, x);
    return most < x ? most : x;
}

// x / (1 + exp(-x)), within a few units in the last place.
template <int lanes>
INLINE typename Lanes<lanes>::Vector swish(typename Lanes<lanes>::Vector x) {
    typedef typename Lanes<lanes>::Vector Floats;
    typedef int32_t Integers __attribute__((vector_size(lanes * 4)));
    // exp(-x) = 2^n * 2^rest, n a whole number, which this constant rounds to and leaves in the last
    // bits of the sum. Beyond these bounds the quotient is x, or 1e-37 of it.
    constexpr float kRound = 12582912.0f, kScale = -1.44269504f, kBound = 87.0f;
    const Floats y = not_above<lanes>(not_below<lanes>(x, Floats{} - kBound), Floats{} + kBound);
    const Floats shifted = y * kScale + kRound;
    const Floats rest = y * kScale - (shifted - kRound);
    // 2^rest for -1/2 to 1/2, within 2e-9 of it (weighted least squares on Chebyshev's nodes).
    Floats power = rest * 1.534581086e-4f + 1.339993121e-3f;
    power = power * rest + 9.618488961e-3f;
    power = power * rest + 5.550328777e-2f;
    power = power * rest + 2.402264690e-1f;
    power = power * rest + 6.931472057e-1f;
    power = power * rest + 1.0f;
    const Integers exponent = reinterpret_cast<Integers>(shifted) << 23;
    return x / (1.0f + reinterpret_cast<Floats>(reinterpret_cast<Integers>(power) + exponent));
}

template <Activation kind, int lanes = LANES>
INLINE typename Lanes<lanes>::Vector activate(typename Lanes<lanes>::Vector x) {
    const typename Lanes<lanes>::Vector zero = {};
    if constexpr (kind == kHardSwish) {
        const typename Lanes<lanes>::Vector gate = x * (1.0f / 6.0f) + 0.5f;
        return x * not_above<lanes>(not_below<lanes>(gate, zero), zero + 1.0f);
    } else if constexpr (kind == kSwish) {
        return swish<lanes>(x);
    } else if constexpr (kind == kNone) {
        return x;
    } else {
        x = x > zero ? x : zero;
        if constexpr (kind == kRelu6) x = x < zero + 6.0f ? x : zero + 6.0f;
        return x;
    }
}

// A squeeze-excitation's gates, a sigmoid where `limit` is below 0.
INLINE Vector gate(Vector x, float limit) {
    const Vector zero = {};
    if (limit < 0) {
        for (int lane = 0; lane < LANES; ++lane) x[lane] = 1 / (1 + std::exp(-x[lane]));
        return x;
    }
    x = x > zero ? x : zero;
    return x < zero + limit ? x : zero + limit;
}

// A matrix product: out = start + a * b, activated or not. `b` is laid out by vectors of its
// columns, (vectors, depth, LANES), of which the last may overlap the one before.
struct Product {
    const float* a;
    int64_t a_row;  // from row to row
    const float* b;
    int64_t depth;
    const float* start;
    int64_t start_row;
    float* out;
    int64_t out_row;
};

INLINE int64_t column_of(int64_t vector, int64_t columns) {
    const int64_t column = vector * LANES, last = columns - LANES;
    return column < last ? column : last;
}

template <Activation kind, int rows, int vectors>
inline void multiply_block(Product p, const int64_t* columns) {
    Vector y[rows][vectors];
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            y[row][v] = load(p.start + row * p.start_row + columns[v]);
    const int64_t next = p.depth * LANES;
    for (int64_t k = 0; k < p.depth; ++k) {
        Vector b[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) b[v] = load(p.b + v * next + k * LANES);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const float a = p.a[row * p.a_row + k];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) y[row][v] += a * b[v];
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            store(p.out + row * p.out_row + columns[v], activate<kind>(y[row][v]));
}

// Some rows of a product, from one vector of its columns to another.
template <Activation kind, int rows>
inline void multiply_rows(const Product& p, int64_t first, int64_t last, int64_t columns) {
    for (int64_t vector = first; vector < last;) {
        Product part = p;
        part.b += vector * p.depth * LANES;
        int64_t at[4];
        for (int64_t v = 0; v < 4; ++v) at[v] = column_of(vector + v, columns);
        const int64_t left = last - vector;
        if constexpr (rows <= kFewRows) {
            if (left >= 4) {
                multiply_block<kind, rows, 4>(part, at);
                vector += 4;
                continue;
            }
        }
        if (left >= 2) {
            multiply_block<kind, rows, 2>(part, at);
            vector += 2;
        } else {
            multiply_block<kind, rows, 1>(part, at);
            ++vector;
        }
    }
}

template <Activation kind, int most>
INLINE void multiply_some(const Product& p, int64_t rows, int64_t first, int64_t last,
                          int64_t columns) {
    if constexpr (most > 0) {
        if (rows == most) return multiply_rows<kind, most>(p, first, last, columns);
        multiply_some<kind, most - 1>(p, rows, first, last, columns);
    }
}

template <Activation kind>
inline void multiply(Product p, int64_t rows, int64_t first, int64_t last, int64_t columns) {
    for (int64_t blocks = ceil_divide(rows, kRows); blocks > 0; --blocks) {
        const int64_t now = ceil_divide(rows, blocks);
        multiply_some<kind, kRows>(p, now, first, last, columns);
        p.a += now * p.a_row;
        p.start += now * p.start_row;
        p.out += now * p.out_row;
        rows -= now;
    }
}

// What a thread convolves: rows of the output, and channels.
struct Share {
    int64_t first_row, last_row, first_channel, last_channel;
};

INLINE int64_t width_of(Share share) { return share.last_channel - share.first_channel; }

// Deal out rows or channels, whichever goes up more evenly.
INLINE Share share_of(const Layer& l, int64_t thread, int64_t threads) {
    const int64_t vectors = ceil_divide(l.channels, LANES);
    const int64_t rows_each = ceil_divide(l.out_height, threads);
    const int64_t vectors_each = ceil_divide(vectors, threads);
    if (rows_each * vectors <= vectors_each * l.out_height)
        return {l.out_height * thread / threads, l.out_height * (thread + 1) / threads, 0,
                l.channels};
    const int64_t first = vectors * thread / threads, last = vectors * (thread + 1) / threads;
    if (first == last) return {0, 0, 0, 0};
    if (last < vectors) return {0, l.out_height, first * LANES, last * LANES};
    // The last vector is a whole one; what it has in common with the one before is computed twice.
    const int64_t start = first * LANES;
    return {0, l.out_height, start < l.channels - LANES ? start : l.channels - LANES, l.channels};
}

// For each vector of some channels, LANES or more; the last one may overlap the one before.
template <typename Body>
INLINE void for_vectors(int64_t first, int64_t last, const Body& body) {
    for (; first + LANES <= last; first += LANES) body(first);
    if (first < last) body(last - LANES);
}

// Pixels of a row that a convolution over space sees.
template <typename Convolution>
INLINE int64_t padded_width(const Convolution& c) {
    return (c.out_width - 1) * c.stride_width + c.kernel_width;
}

// Where in it the frame's own end, which begin at `left`; a stride may leave out the last ones.
template <typename Convolution>
INLINE int64_t row_end(const Convolution& c) {
    const int64_t end = c.left + c.width, wide = padded_width(c);
    return end < wide ? end : wide;
}

// Where the sums of a vector of channels are; the last vector, which may overlap, has its own.
INLINE int64_t slot_of(int64_t channel) { return ceil_divide(channel, LANES) * LANES; }

// A row of the frame, expanded; what is left and right of it has been zero from the beginning.
template <Activation kind>
inline void expand_row(const Layer& l, Share share, int64_t row, float* to) {
    const int64_t width = width_of(share);
    if (row < 0 || row >= l.height) {
        std::memset(to, 0, sizeof(float) * width * padded_width(l));
        return;
    }
    Product p;
    p.a = l.x + row * l.width * l.inputs;
    p.a_row = l.inputs;
    p.b = l.expansion;
    p.depth = l.inputs;
    p.start = l.expansion_bias;
    p.start_row = 0;
    p.out = to + l.left * width - share.first_channel;
    p.out_row = width;
    multiply<kind>(p, row_end(l) - l.left, ceil_divide(share.first_channel, LANES),
                   ceil_divide(share.last_channel, LANES), l.channels);
}

// A vector of channels of a few pixels, convolved over space, and added to the channels' sum unless
// they are convolved over time as well.
//
// rows: what the kernel sees, each from the first pixel on.
// at: the first pixel in the frame.
template <Activation kind, int pixels>
INLINE void convolve(const Layer& l, const float* const* rows, int64_t width, int64_t channel,
                     int64_t at, float* sum) {
    Vector y[pixels];
    const Vector bias = load(l.bias + channel);
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p) y[p] = bias;
    const int64_t step = l.stride_width * width;
    const float* cell = l.cells + channel;
    for (int64_t row = 0; row < l.kernel_height; ++row) {
        const float* seen = rows[row];
        for (int64_t column = 0; column < l.kernel_width; ++column) {
            const Vector weight = load(cell);
#pragma GCC unroll 16
            for (int p = 0; p < pixels; ++p) y[p] += weight * load(seen + p * step);
            cell += l.channels;
            seen += width;
        }
    }
    float* const to = (l.mixes ? l.mixed : l.convolved) + at;
    Vector all = {};
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p) {
        const Vector x = activate<kind>(y[p]);
        store(to + p * l.channels, x);
        all += x;
    }
    if (!l.mixes) store(sum, load(sum) + all);
}

template <Activation kind, int most>
INLINE void convolve_some(const Layer& l, int64_t pixels, const float* const* rows, int64_t width,
                          int64_t channel, int64_t at, float* sum) {
    if constexpr (most > 0) {
        if (pixels == most) return convolve<kind, most>(l, rows, width, channel, at, sum);
        convolve_some<kind, most - 1>(l, pixels, rows, width, channel, at, sum);
    }
}

// A row of the output, convolved over space. The layer is copied, so that the compiler knows that
// nobody writes to it.
template <Activation kind>
inline void convolve_row(const Layer l, Share share, int64_t row, const float* const* padded,
                         float* sums) {
    const int64_t width = width_of(share);
    for_vectors(share.first_channel, share.last_channel, [&](int64_t channel) {
        const float* rows[HIGHEST_KERNEL];
        for (int64_t i = 0; i < l.kernel_height; ++i)
            rows[i] = padded[i] + channel - share.first_channel;
        int64_t at = row * l.out_width * l.channels + channel, left = l.out_width;
        for (int64_t blocks = ceil_divide(left, kPixels); blocks > 0; --blocks) {
            const int64_t now = ceil_divide(left, blocks);
            convolve_some<kind, kPixels>(l, now, rows, width, channel, at, sums + slot_of(channel));
            for (int64_t i = 0; i < l.kernel_height; ++i)
                rows[i] += now * l.stride_width * width;
            at += now * l.channels;
            left -= now;
        }
    });
}

// A row of the output, convolved over time and added to the sums of its channels.
template <Activation kind, int mixes>
inline void finish_row(const Layer l, Share share, int64_t row, float* sums) {
    for (int64_t column = 0; column < l.out_width; ++column) {
        const int64_t pixel = (row * l.out_width + column) * l.channels;
        for_vectors(share.first_channel, share.last_channel, [&](int64_t channel) {
            const float* tap = l.mix + channel;
            Vector y = load(l.mix_bias + channel);
#pragma GCC unroll 8
            for (int frame = 0; frame < mixes - 1; ++frame, tap += l.channels)
                y += load(tap) * load(l.held[frame] + pixel + channel);
            y = activate<kind>(y + load(tap) * load(l.mixed + pixel + channel));
            store(l.convolved + pixel + channel, y);
            float* const sum = sums + slot_of(channel);
            store(sum, load(sum) + y);
        });
    }
}

template <Activation kind, int most>
INLINE void finish_row_of(const Layer& l, Share share, int64_t row, float* sums) {
    if constexpr (most > 1) {
        if (l.mixes == most) return finish_row<kind, most>(l, share, row, sums);
        finish_row_of<kind, most - 1>(l, share, row, sums);
    }
}

// Ask for what is held of a row: it has not been seen since the last frame.
inline void prefetch_row(const Layer& l, Share share, int64_t row) {
    const int64_t width = width_of(share), line = 64 / sizeof(float);
    // Rows of whole pixels lie behind one another.
    const bool whole = width == l.channels;
    const int64_t runs = whole ? 1 : l.out_width, size = whole ? l.out_width * width : width;
    for (int64_t frame = 0; frame < l.mixes - 1; ++frame) {
        const float* from = l.held[frame] + row * l.out_width * l.channels + share.first_channel;
        for (int64_t run = 0; run < runs; ++run, from += l.channels)
            for (int64_t at = 0; at < size; at += line) __builtin_prefetch(from + at, 0, 2);
    }
}

// A thread's share of the expansion and both convolutions.
//
// rows: (kernel height, padded width, channels): as many rows as the kernel sees, of which each
//     takes the place of one that is seen no more.
template <Activation kind>
inline void convolve_share(const Layer& l, Share share, float* rows, float* sums) {
    const int64_t width = width_of(share), size = padded_width(l) * width;
    const int64_t end = row_end(l) * width;
    for (int64_t row = 0; row < l.kernel_height; ++row) {
        std::memset(rows + row * size, 0, sizeof(float) * l.left * width);
        std::memset(rows + row * size + end, 0, sizeof(float) * (size - end));
    }
    const auto place = [&](int64_t row) { return rows + (row + l.top) % l.kernel_height * size; };
    int64_t next = -l.top;
    for (int64_t row = share.first_row; row < share.last_row; ++row) {
        prefetch_row(l, share, row);
        const int64_t first = row * l.stride_height - l.top, last = first + l.kernel_height;
        if (next < first) next = first;
        for (; next < last; ++next) expand_row<kind>(l, share, next, place(next));
        const float* seen[HIGHEST_KERNEL];
        for (int64_t i = 0; i < l.kernel_height; ++i) seen[i] = place(first + i);
        convolve_row<kind>(l, share, row, seen, sums);
        finish_row_of<kind, MOST_TAPS>(l, share, row, sums);
    }
}

// Some vectors of rows of a matrix times a vector, from one of its numbers to another. `finish`
// takes each vector of products.
//
// matrix: laid out as `Product` wants it, from the first of these vectors on.
template <int vectors, typename Finish>
INLINE void multiply_vectors(const float* matrix, const float* x, int64_t depth, int64_t first,
                             int64_t last, const Finish& finish) {
    // One sum would wait for every addition. Their number is the same for all, because overlapping
    // vectors must not differ.
    constexpr int parts = LANES == 16 ? 4 : 2;
    Vector y[parts][vectors] = {};
    const int64_t next = depth * LANES;
    for (; first + parts <= last; first += parts) {
#pragma GCC unroll 4
        for (int part = 0; part < parts; ++part) {
            const float number = x[first + part];
            const float* const from = matrix + (first + part) * LANES;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) y[part][v] += number * load(from + v * next);
        }
    }
    for (; first < last; ++first)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
            y[0][v] += x[first] * load(matrix + first * LANES + v * next);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
        for (int part = 1; part < parts; ++part) y[0][v] += y[part][v];
        finish(v, y[0][v]);
    }
}

// Rows of a matrix times a vector, from one vector of rows to another and from one of the vector's
// numbers to another.
template <typename Finish>
INLINE void multiply_vector(const float* matrix, const float* x, int64_t depth, int64_t first_row,
                            int64_t last_row, int64_t first, int64_t last, const Finish& finish) {
    while (first_row < last_row) {
        const float* const from = matrix + first_row * depth * LANES;
        const auto finish_one = [&](int64_t v, Vector sum) { finish(first_row + v, sum); };
        if (last_row - first_row >= 4) {
            multiply_vectors<4>(from, x, depth, first, last, finish_one);
            first_row += 4;
        } else {
            multiply_vectors<1>(from, x, depth, first, last, finish_one);
            ++first_row;
        }
    }
}

// The vector that is squeezed. Every thread makes its own; the first one keeps the sums for the
// next frame.
//
// sums: of the first thread's share; `apart` numbers on, those of the next one.
inline void pool(const Layer& l, const float* sums, int64_t apart, int64_t thread, int64_t threads,
                 float* value) {
    const float share = 1.0f / static_cast<float>(l.out_height * l.out_width);
    const float part = l.whole ? *l.part : 0.0f;
    for_vectors(0, l.channels, [&](int64_t channel) {
        Vector mean = {};
        const float* sum = sums + slot_of(channel);
        for (int64_t other = 0; other < threads; ++other, sum += apart) mean += load(sum);
        mean *= share;
        if (!l.whole) {
            store(value + channel, mean);
            return;
        }
        const Vector total = load(l.pool + channel) + mean;
        if (thread == 0) store(l.total + channel, total);
        store(value + channel, total * part);
        if (l.spatial) store(value + l.channels + channel, mean);
    });
    if (l.wave)
        for (int64_t i = 0; i < l.squeezed; ++i) value[i] += l.wave[i];
}

// A thread's share of the projection, of channels that are gated, or are not.
//
// gated: (kRows, channels), to compute in.
inline void project(const Layer& l, const float* gates, int64_t thread, int64_t threads,
                    float* gated) {
    const int64_t cells = l.out_height * l.out_width;
    const int64_t last = cells * (thread + 1) / threads;
    for (int64_t first = cells * thread / threads; first < last;) {
        const int64_t rows = ceil_divide(last - first, ceil_divide(last - first, kRows));
        Product p;
        p.a = l.convolved + first * l.channels;
        p.a_row = l.channels;
        if (gates) {
            for (int64_t row = 0; row < rows; ++row) {
                const float* const from = p.a + row * l.channels;
                float* const to = gated + row * l.channels;
                for_vectors(0, l.channels, [=](int64_t channel) {
                    store(to + channel, load(from + channel) * load(gates + channel));
                });
            }
            p.a = gated;
        }
        p.b = l.projection;
        p.depth = l.channels;
        p.start = l.residual + first * l.outputs;
        p.start_row = l.outputs;
        p.out = l.out + first * l.outputs;
        p.out_row = l.outputs;
        multiply<kNone>(p, rows, 0, ceil_divide(l.outputs, LANES), l.outputs);
        first += rows;
    }
}

// Memory in whole lines of the cache: a vector across two of them is loaded twice.
constexpr int64_t kLine = 64 / sizeof(float);
INLINE int64_t whole_lines(int64_t size) { return ceil_divide(size, kLine) * kLine; }

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};

using Memory = std::unique_ptr<float, Free>;

INLINE Memory memory_of(int64_t numbers) {
    Memory memory(static_cast<float*>(std::aligned_alloc(64, numbers * sizeof(float))));
    if (!memory) throw std::bad_alloc();
    return memory;
}

template <Activation kind>
void compute_layer(Layer l) {
    // For each thread what is convolved and then what is gated, the value squeezed, and its sums.
    const int64_t rows = l.kernel_height * padded_width(l) * l.channels;
    const int64_t room = whole_lines(rows > kRows * l.channels ? rows : kRows * l.channels);
    const int64_t squeezed = whole_lines(l.squeezed > l.hidden ? l.squeezed : l.hidden);
    const int64_t summed = ceil_divide(l.channels, LANES) * LANES;
    const int64_t own = room + squeezed + whole_lines(summed);
    // For all of them the gates, each one's part of their hidden layer, and the frame.
    const int64_t hidden_size = whole_lines(l.hidden), gates_size = whole_lines(l.channels);
    const int64_t frame = whole_lines(l.out_height * l.out_width * l.channels);
    const Memory memory = memory_of(l.threads * (own + hidden_size) + gates_size + frame);
    float* const hidden = memory.get() + l.threads * own;
    float* const gates = hidden + l.threads * hidden_size;
    l.convolved = gates + gates_size;
    const float limit = static_cast<float>(l.limit);
    float* const sums = memory.get() + room + squeezed;
#pragma omp parallel num_threads(l.threads)
    {
        const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        float* const scratch = memory.get() + thread * own;
        float* const value = scratch + room;
        std::memset(sums + thread * own, 0, sizeof(float) * summed);
        convolve_share<kind>(l, share_of(l, thread, threads), scratch, sums + thread * own);
#pragma omp barrier
        if (l.squeezed) {
            pool(l, sums, own, thread, threads, value);
            // Of every hidden number, each thread adds up a part.
            float* const part = hidden + thread * hidden_size;
            multiply_vector(l.reduce, value, l.squeezed, 0, ceil_divide(l.hidden, LANES),
                            l.squeezed * thread / threads, l.squeezed * (thread + 1) / threads,
                            [=](int64_t vector, Vector sum) { store(part + vector * LANES, sum); });
#pragma omp barrier
            for (int64_t at = 0; at < l.hidden; at += LANES) {
                Vector sum = load(l.reduce_bias + at);
                for (int64_t other = 0; other < threads; ++other)
                    sum += load(hidden + other * hidden_size + at);
                store(value + at, activate<kind>(sum));
            }
            const int64_t vectors = ceil_divide(l.channels, LANES);
            multiply_vector(l.expand, value, l.hidden, vectors * thread / threads,
                            vectors * (thread + 1) / threads, 0, l.hidden,
                            [=, &l](int64_t vector, Vector sum) {
                                const int64_t at = column_of(vector, l.channels);
                                store(gates + at, gate(sum + load(l.expand_bias + at), limit));
                            });
#pragma omp barrier
        }
        project(l, l.squeezed ? gates : nullptr, thread, threads, scratch);
    }
}

void multiply_matrix(const MatrixVector m) {
    const int64_t vectors = ceil_divide(m.rows, LANES);
#pragma omp parallel num_threads(m.threads)
    {
        const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        multiply_vector(m.matrix, m.x, m.columns, vectors * thread / threads,
                        vectors * (thread + 1) / threads, 0, m.columns,
                        [=](int64_t vector, Vector sum) {
                            const int64_t row = column_of(vector, m.rows);
                            store(m.out + row, sum + load(m.bias + row));
                        });
    }
}

// A vector of filters of a few pixels.
//
// rows: what the kernel sees, from the first of these pixels on.
// channel_step, pixel_step: in a row.
// step: pixel_step times the stride, known to the compiler unless it is 0.
template <Activation kind, int lanes, int step, int pixels>
INLINE void convolve_stem(const Stem& s, const float* const* rows, int64_t channel_step,
                          int64_t pixel_step, int64_t filter, float* to) {
    typename Lanes<lanes>::Vector y[pixels];
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p) y[p] = load<lanes>(s.bias + filter);
    const int64_t next = step ? step : pixel_step * s.stride_width;
    const float* cell = s.cells + filter;
    for (int64_t channel = 0; channel < s.channels; ++channel)
        for (int64_t row = 0; row < s.kernel_height; ++row) {
            const float* seen = rows[row] + channel * channel_step;
            for (int64_t column = 0; column < s.kernel_width; ++column) {
                const typename Lanes<lanes>::Vector weight = load<lanes>(cell);
#pragma GCC unroll 16
                for (int p = 0; p < pixels; ++p) y[p] += seen[p * next] * weight;
                cell += s.filters;
                seen += pixel_step;
            }
        }
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p)
        store<lanes>(to + p * s.out_step, activate<kind, lanes>(y[p]));
}

template <Activation kind, int lanes, int step, int most>
INLINE void convolve_stem_some(const Stem& s, int64_t pixels, const float* const* rows,
                               int64_t channel_step, int64_t pixel_step, int64_t filter,
                               float* to) {
    if constexpr (most > 0) {
        if (pixels == most)
            return convolve_stem<kind, lanes, step, most>(s, rows, channel_step, pixel_step,
                                                          filter, to);
        convolve_stem_some<kind, lanes, step, most - 1>(s, pixels, rows, channel_step, pixel_step,
                                                        filter, to);
    }
}

// A row of the frame, as it lies in memory if that is close together, else channel by channel.
inline void copy_row(const Stem& s, int64_t row, int64_t channel_step, int64_t pixel_step,
                     float* to) {
    const int64_t width = row_end(s) - s.left;
    const float* const from = s.x + row * s.row_step;
    to += s.left * pixel_step;
    if (channel_step == 1 && pixel_step == s.channels) {
        std::memcpy(to, from, sizeof(float) * width * s.channels);
        return;
    }
    for (int64_t channel = 0; channel < s.channels; ++channel) {
        const float* const plane = from + channel * s.channel_step;
        float* const copy = to + channel * channel_step;
        if (s.pixel_step == 1)
            std::memcpy(copy, plane, sizeof(float) * width);
        else
            for (int64_t column = 0; column < width; ++column)
                copy[column] = plane[column * s.pixel_step];
    }
}

// The stem, its filters a multiple of `lanes`.
template <Activation kind, int lanes, int step>
inline void compute_stem(const Stem s, int64_t channel_step, int64_t pixel_step) {
    const int64_t size = s.channels * padded_width(s), own = whole_lines(s.kernel_height * size);
    const Memory memory = memory_of(s.threads * own);
#pragma omp parallel num_threads(s.threads)
    {
        const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        float* const padded = memory.get() + thread * own;
        // What is left and right of the frame stays zero.
        std::memset(padded, 0, sizeof(float) * own);
        const auto place = [&](int64_t row) {
            return padded + (row + s.top) % s.kernel_height * size;
        };
        int64_t next = -s.top;
        const int64_t last_row = s.out_height * (thread + 1) / threads;
        for (int64_t row = s.out_height * thread / threads; row < last_row; ++row) {
            const int64_t first = row * s.stride_height - s.top, last = first + s.kernel_height;
            if (next < first) next = first;
            for (; next < last; ++next) {
                if (next < 0 || next >= s.height)
                    std::memset(place(next), 0, sizeof(float) * size);
                else
                    copy_row(s, next, channel_step, pixel_step, place(next));
            }
            const float* rows[HIGHEST_KERNEL];
            for (int64_t i = 0; i < s.kernel_height; ++i) rows[i] = place(first + i);
            float* to = s.out + row * s.out_width * s.out_step;
            int64_t left = s.out_width;
            for (int64_t blocks = ceil_divide(left, kPixels); blocks > 0; --blocks) {
                const int64_t now = ceil_divide(left, blocks);
                for (int64_t filter = 0; filter < s.filters; filter += lanes)
                    convolve_stem_some<kind, lanes, step, kPixels>(
                        s, now, rows, channel_step, pixel_step, filter, to + filter);
                for (int64_t i = 0; i < s.kernel_height; ++i)
                    rows[i] += now * s.stride_width * pixel_step;
                to += now * s.out_step;
                left -= now;
            }
        }
    }
}

// Decoders put the channels of a pixel together, networks of PyTorch take them apart.
template <Activation kind, int lanes>
inline void compute_stem_of(const Stem& s) {
    const bool usual = s.channels == 3 && s.stride_width == 2;
    if (s.channel_step == 1 && s.pixel_step == s.channels) {
        if (usual) return compute_stem<kind, lanes, 6>(s, 1, 3);
        return compute_stem<kind, lanes, 0>(s, 1, s.channels);
    }
    if (usual) return compute_stem<kind, lanes, 2>(s, padded_width(s), 1);
    compute_stem<kind, lanes, 0>(s, padded_width(s), 1);
}

template <Activation kind>
void compute_stems(Stem s) {
    for (int64_t frame = 0; frame < s.frames; ++frame) {
        if (s.filters % LANES)
            compute_stem_of<kind, LANES / 2>(s);
        else
            compute_stem_of<kind, LANES>(s);
        s.x += s.frame_step;
        s.out += s.out_frame_step;
    }
}

}  // namespace
}  // namespace movinet_port
