// What is computed of clips, of several frames or several videos: the expansion and the depthwise
// convolution of a bottleneck, matrix products of pixels, and average pools.
//
// A clip is cut into tiles (some channels of some rows of some frames of a video), and a tile is
// expanded, convolved and summed up frame by frame, so that what is expanded stays in the cache of one
// core.

#include "frame.cpp"

namespace movinet_port {
namespace {

// In a tile, channels are in panels of two vectors, or one at the end, so that what lies between two
// pixels is known to the compiler. These are the pixels whose sums of a panel fill the registers.
template <int vectors>
constexpr int kPixelsOf = LANES == 16 ? 14 : 12 / vectors;

// What a thread computes at a time.
struct Tile {
    int64_t video, strip, first_row, last_row, first_frame, last_frame, first_panel, last_panel;
};

INLINE int64_t panels_of(const Clip& c) { return ceil_divide(c.channels, 2 * LANES); }

INLINE Tile tile_of(const Clip& c, int64_t index) {
    const int64_t block = index % c.blocks;
    index /= c.blocks;
    const int64_t strip = index % c.strips;
    index /= c.strips;
    const int64_t segment = index % c.segments;
    Tile t;
    t.video = index / c.segments;
    t.strip = strip;
    t.first_row = c.out_height * strip / c.strips;
    t.last_row = c.out_height * (strip + 1) / c.strips;
    t.first_frame = c.frames * segment / c.segments;
    t.last_frame = c.frames * (segment + 1) / c.segments;
    t.first_panel = panels_of(c) * block / c.blocks;
    t.last_panel = panels_of(c) * (block + 1) / c.blocks;
    return t;
}

// The channels of a panel's vectors. The last vector is a whole one, and may overlap the one before:
// what they have in common is computed twice.
template <int vectors>
struct Panel {
    int64_t channel[vectors];
    const float* expansion;  // as `Product` wants it
};

// A few pixels, expanded.
template <Activation kind, int vectors, int pixels>
INLINE void expand_pixels(const Bottleneck& l, const Panel<vectors>& panel, const float* x,
                          float* to) {
    Vector y[pixels][vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
        const Vector bias = load(l.expansion_bias + panel.channel[v]);
#pragma GCC unroll 16
        for (int p = 0; p < pixels; ++p) y[p][v] = bias;
    }
    const float* weight = panel.expansion;
    const int64_t inputs = l.inputs, next = inputs * LANES;
    for (int64_t k = 0; k < inputs; ++k, weight += LANES) {
        Vector b[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) b[v] = load(weight + v * next);
#pragma GCC unroll 16
        for (int p = 0; p < pixels; ++p) {
            const float a = x[p * inputs + k];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) y[p][v] += a * b[v];
        }
    }
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v)
            store(to + (p * vectors + v) * LANES, activate<kind>(y[p][v]));
}

template <Activation kind, int vectors, int most>
INLINE void expand_some(const Bottleneck& l, const Panel<vectors>& panel, int64_t pixels,
                        const float* x, float* to) {
    if constexpr (most > 1)
        if (pixels != most) return expand_some<kind, vectors, most - 1>(l, panel, pixels, x, to);
    expand_pixels<kind, vectors, most>(l, panel, x, to);
}

// A row of a frame, expanded; what is left and right of it has been zero from the beginning.
template <Activation kind, int vectors>
inline void expand_panel_row(const Bottleneck& l, const Panel<vectors>& panel, const float* x,
                             float* to) {
    to += l.left * vectors * LANES;
    int64_t left = row_end(l) - l.left;
    for (int64_t blocks = ceil_divide(left, kPixelsOf<vectors>); blocks > 0; --blocks) {
        const int64_t now = ceil_divide(left, blocks);
        expand_some<kind, vectors, kPixelsOf<vectors>>(l, panel, now, x, to);
        x += now * l.inputs;
        to += now * vectors * LANES;
        left -= now;
    }
}

// Rows of the kernels that see something, from the first pixel on, and their cells.
struct Seen {
    const float* rows[HIGHEST_KERNEL * MOST_TAPS];
    const float* cells[HIGHEST_KERNEL * MOST_TAPS];
    int64_t count;
};

// A few pixels, convolved, and added to the sums of their channels.
//
// stride: of the width.
// offset: of the first pixel in the rows that are seen.
// to: of each vector; `next` numbers on, the next pixel's.
template <Activation kind, int vectors, int stride, int pixels>
INLINE void convolve_pixels(const Bottleneck& l, const Panel<vectors>& panel, const Seen& seen,
                            int64_t offset, float* const* to, int64_t next, Vector* sums) {
    Vector y[pixels][vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
        const Vector bias = load(l.bias + panel.channel[v]);
#pragma GCC unroll 16
        for (int p = 0; p < pixels; ++p) y[p][v] = bias;
    }
    constexpr int64_t step = stride * vectors * LANES;
    for (int64_t i = 0; i < seen.count; ++i) {
        const float* from = seen.rows[i] + offset;
        const float* cell = seen.cells[i];
        for (int64_t column = 0; column < l.kernel_width; ++column) {
            Vector weight[vectors];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) weight[v] = load(cell + panel.channel[v]);
#pragma GCC unroll 16
            for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 2
                for (int v = 0; v < vectors; ++v)
                    y[p][v] += weight[v] * load(from + p * step + v * LANES);
            from += vectors * LANES;
            cell += l.channels;
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
        Vector sum = sums[v];
        float* const out = to[v];
#pragma GCC unroll 16
        for (int p = 0; p < pixels; ++p) {
            const Vector x = activate<kind>(y[p][v]);
            store(out + p * next, x);
            sum += x;
        }
        sums[v] = sum;
    }
}

template <Activation kind, int vectors, int stride, int most>
INLINE void convolve_pixels_some(const Bottleneck& l, const Panel<vectors>& panel, const Seen& seen,
                                 int64_t pixels, int64_t offset, float* const* to, int64_t next,
                                 Vector* sums) {
    if constexpr (most > 1)
        if (pixels != most)
            return convolve_pixels_some<kind, vectors, stride, most - 1>(l, panel, seen, pixels,
                                                                         offset, to, next, sums);
    convolve_pixels<kind, vectors, stride, most>(l, panel, seen, offset, to, next, sums);
}

// A row of the output; arguments as above.
template <Activation kind, int vectors, int stride>
inline void convolve_panel_row(const Bottleneck& l, const Panel<vectors>& panel, const Seen& seen,
                               float* const* to, int64_t next, Vector* sums) {
    int64_t offset = 0, left = l.out_width;
    float* out[vectors];
    for (int v = 0; v < vectors; ++v) out[v] = to[v];
    for (int64_t blocks = ceil_divide(left, kPixelsOf<vectors>); blocks > 0; --blocks) {
        const int64_t now = ceil_divide(left, blocks);
        convolve_pixels_some<kind, vectors, stride, kPixelsOf<vectors>>(l, panel, seen, now,
                                                                        offset, out, next, sums);
        offset += now * stride * vectors * LANES;
        for (int v = 0; v < vectors; ++v) out[v] += now * next;
        left -= now;
    }
}

// A row convolved over time.
//
// rows: of each frame that the kernel sees, oldest first.
template <Activation kind, int vectors, int mixes>
inline void mix_row(const Clip& c, const Panel<vectors>& panel, const float* const* rows,
                    float* const* to, Vector* sums) {
    const int64_t channels = c.channels, width = c.out_width;
    for (int v = 0; v < vectors; ++v) {
        Vector weights[mixes], sum = sums[v];
        const Vector bias = load(c.mix_bias + panel.channel[v]);
#pragma GCC unroll 8
        for (int i = 0; i < mixes; ++i)
            weights[i] = load(c.mix + i * channels + panel.channel[v]);
        float* out = to[v];
        for (int64_t column = 0; column < width; ++column, out += channels) {
            const int64_t at = (column * vectors + v) * LANES;
            Vector y = bias;
#pragma GCC unroll 8
            for (int i = 0; i < mixes; ++i) y += weights[i] * load(rows[i] + at);
            y = activate<kind>(y);
            store(out, y);
            sum += y;
        }
        sums[v] = sum;
    }
}

template <Activation kind, int vectors, int most>
INLINE void mix_row_of(const Clip& c, const Panel<vectors>& panel, const float* const* rows,
                       float* const* to, Vector* sums) {
    if constexpr (most > 0) {
        if (c.mixes == most) return mix_row<kind, vectors, most>(c, panel, rows, to, sums);
        mix_row_of<kind, vectors, most - 1>(c, panel, rows, to, sums);
    }
}

// What a tile holds of one of its panels, and what all of them have in common.
struct Held {
    // Rows of the input that the tile sees, from `first_seen` on; of a frame are held all of them, or,
    // where no other frame sees them, as many as the kernel sees, of which each takes the place of one
    // that is seen no more.
    int64_t first_seen, tall, rows;
    // (taps, rows, padded width, panel), and (mixes, rows of the output, out_width, panel).
    float *expanded, *mixed;
    // Frames before this one have been expanded.
    int64_t next;
};

INLINE int64_t not_below(int64_t n, int64_t least) { return n < least ? least : n; }
INLINE int64_t not_above(int64_t n, int64_t most) { return n > most ? most : n; }

// One panel of one frame of a tile.
template <Activation kind, int vectors, int stride>
inline void compute_panel(const Clip& c, const Tile& t, int64_t number, int64_t frame, Held* held) {
    const Bottleneck& l = c;
    constexpr int64_t width = vectors * LANES;
    Panel<vectors> panel;
    panel.expansion = l.expansion + number * 2 * LANES * l.inputs;
    for (int v = 0; v < vectors; ++v) panel.channel[v] = column_of(number * 2 + v, l.channels);
    const int64_t size = padded_width(l) * width, out_row = l.out_width * width;
    const int64_t rows_out = t.last_row - t.first_row;
    // Frames before the clip have numbers below 0.
    const auto mixed_frame = [&](int64_t at) {
        return held->mixed + (at + c.mixes) % c.mixes * rows_out * out_row;
    };
    // Where the tile begins in whole frames.
    const auto tile_in = [&](int64_t at, int64_t v) {
        return (at * l.out_height + t.first_row) * l.out_width * l.channels + panel.channel[v];
    };
    if (frame < 0) {
        float* const to = mixed_frame(frame);
        for (int v = 0; v < vectors; ++v) {
            const float* from = c.held[frame + c.mixes - 1] + tile_in(t.video, v);
            for (int64_t i = 0; i < rows_out * l.out_width; ++i, from += l.channels)
                store(to + i * width + v * LANES, load(from));
        }
        return;
    }
    const int64_t first = frame - c.before;
    const auto frame_of = [&](int64_t at) {
        return held->expanded + at % c.taps * held->rows * size;
    };
    const auto expand_rows = [&](int64_t at, int64_t from, int64_t last) {
        const float* const x = c.x + (at * c.batch + t.video) * l.height * l.width * l.inputs;
        float* const to = frame_of(at);
        int64_t place = (from - held->first_seen) % held->rows;
        for (int64_t row = from; row < last; ++row) {
            if (row >= 0 && row < l.height)
                expand_panel_row<kind>(l, panel, x + row * l.width * l.inputs, to + place * size);
            if (++place == held->rows) place = 0;
        }
    };
    if (c.taps > 1)
        for (const int64_t last = not_above(first + c.taps, c.frames); held->next < last;
             ++held->next)
            expand_rows(held->next, held->first_seen, held->first_seen + held->tall);
    const bool owned = frame >= t.first_frame;
    Vector sums[vectors] = {}, unmixed[vectors] = {};
    const float* frames[MOST_TAPS];
    int64_t first_tap = not_below(-first, 0), last_tap = not_above(c.frames - first, c.taps);
    for (int64_t tap = first_tap; tap < last_tap; ++tap) frames[tap] = frame_of(first + tap);
    int64_t expanded = held->first_seen;
    for (int64_t row = t.first_row; row < t.last_row; ++row) {
        const int64_t top = row * l.stride_height - l.top;
        if (c.taps == 1) {
            expanded = not_below(expanded, top);
            const int64_t last = not_below(top + l.kernel_height, expanded);
            expand_rows(frame, expanded, last);
            expanded = last;
        }
        Seen seen;
        seen.count = 0;
        const int64_t first_row = not_below(-top, 0);
        const int64_t last_row = not_above(l.height - top, l.kernel_height);
        const int64_t place = (top + first_row - held->first_seen) % held->rows;
        for (int64_t tap = first_tap; tap < last_tap; ++tap) {
            int64_t at = place;
            for (int64_t i = first_row; i < last_row; ++i) {
                seen.rows[seen.count] = frames[tap] + at * size;
                seen.cells[seen.count++] =
                    l.cells + (tap * l.kernel_height + i) * l.kernel_width * l.channels;
                if (++at == held->rows) at = 0;
            }
        }
        const int64_t near = (row - t.first_row) * out_row;
        float* to[vectors];
        for (int v = 0; v < vectors; ++v)
            to[v] = c.out + tile_in(frame * c.batch + t.video, v) +
                    (row - t.first_row) * l.out_width * l.channels;
        if (!c.mixes) {
            convolve_panel_row<kind, vectors, stride>(l, panel, seen, to, l.channels, sums);
            continue;
        }
        float* mixed[vectors];
        for (int v = 0; v < vectors; ++v) mixed[v] = mixed_frame(frame) + near + v * LANES;
        convolve_panel_row<kind, vectors, stride>(l, panel, seen, mixed, width, unmixed);
        if (!owned) continue;
        const float* rows[MOST_TAPS];
        for (int64_t i = 0; i < c.mixes; ++i)
            rows[i] = mixed_frame(frame + i - c.mixes + 1) + near;
        mix_row_of<kind, vectors, MOST_TAPS>(c, panel, rows, to, sums);
    }
    if (!owned) return;
    const int64_t keep = frame - (c.frames - c.mixes + 1);
    if (c.mixes && keep >= 0)
        for (int v = 0; v < vectors; ++v) {
            float* to = c.kept[keep] + tile_in(t.video, v);
            const float* const from = mixed_frame(frame) + v * LANES;
            for (int64_t i = 0; i < rows_out * l.out_width; ++i, to += l.channels)
                store(to, load(from + i * width));
        }
    float* const to = c.sums + ((t.strip * c.frames + frame) * c.batch + t.video) * l.channels;
    for (int v = 0; v < vectors; ++v) store(to + panel.channel[v], sums[v]);
}

template <Activation kind, int stride>
inline void compute_tile(const Clip& c, const Tile& t, float* scratch) {
    const Bottleneck& l = c;
    const int64_t rows_out = t.last_row - t.first_row;
    Held all;
    all.first_seen = t.first_row * l.stride_height - l.top;
    all.tall = (rows_out - 1) * l.stride_height + l.kernel_height;
    all.rows = c.taps > 1 ? all.tall : l.kernel_height;
    const int64_t expanded = whole_lines(c.taps * all.rows * padded_width(l) * 2 * LANES);
    const int64_t mixed = whole_lines(c.mixes * rows_out * l.out_width * 2 * LANES);
    const int64_t start = c.mixes ? t.first_frame - c.mixes + 1 : t.first_frame;
    std::memset(scratch, 0, sizeof(float) * expanded * (t.last_panel - t.first_panel));
    float* const after = scratch + expanded * (t.last_panel - t.first_panel);
    const int64_t next = not_below(start - c.before, 0);
    for (int64_t frame = start; frame < t.last_frame; ++frame)
        for (int64_t panel = t.first_panel; panel < t.last_panel; ++panel) {
            Held held = all;
            held.expanded = scratch + (panel - t.first_panel) * expanded;
            held.mixed = after + (panel - t.first_panel) * mixed;
            // Those of the frames that it sees which the frame before did not see.
            held.next = frame == start ? next : not_below(frame - 1 - c.before + c.taps, next);
            if (l.channels - panel * 2 * LANES > LANES)
                compute_panel<kind, 2, stride>(c, t, panel, frame, &held);
            else
                compute_panel<kind, 1, stride>(c, t, panel, frame, &held);
        }
}

template <Activation kind>
void compute_clip(const Clip& c) {
    const int64_t tiles = c.batch * c.segments * c.strips * c.blocks;
#pragma omp parallel for schedule(dynamic, 1) num_threads(c.threads)
    for (int64_t index = 0; index < tiles; ++index) {
        const Tile t = tile_of(c, index);
        float* const scratch = c.scratch + omp_get_thread_num() * c.room;
        if (c.stride_width == 1)
            compute_tile<kind, 1>(c, t, scratch);
        else
            compute_tile<kind, 2>(c, t, scratch);
    }
    // Means of the sums of all strips.
    const int64_t numbers = c.frames * c.batch * c.channels;
    const float share = 1.0f / static_cast<float>(c.out_height * c.out_width);
    for (int64_t i = 0; i < numbers; ++i) {
        float sum = c.sums[i];
        for (int64_t strip = 1; strip < c.strips; ++strip) sum += c.sums[strip * numbers + i];
        c.sums[i] = sum * share;
    }
}

template <Activation kind>
void multiply_pixels(const Pixels& m) {
    const int64_t vectors = ceil_divide(m.columns, LANES), size = vectors * m.depth * LANES;
    const int64_t all = m.frames * m.batch * m.cells;
#pragma omp parallel num_threads(m.threads)
    {
        const int64_t number = omp_get_num_threads(), thread = omp_get_thread_num();
        float* const gated = m.scratch + thread * size;
        int64_t gate = -1;
        Product p;
        p.b = m.matrix;
        p.depth = p.a_row = m.depth;
        p.start_row = m.start_row;
        p.out_row = m.columns;
        // Frames of the same video one after the other.
        const int64_t last = all * (thread + 1) / number;
        for (int64_t at = all * thread / number; at < last;) {
            const int64_t unit = at / m.cells, cell = at % m.cells;
            const int64_t video = unit / m.frames, frame = unit % m.frames * m.batch + video;
            const int64_t left = m.cells - cell < last - at ? m.cells - cell : last - at;
            const int64_t row = frame * m.cells + cell;
            const int64_t needed = m.by_frame ? frame : video;
            if (m.gates && needed != gate) {
                gate = needed;
                const float* const values = m.gates + gate * m.depth;
                for (int64_t v = 0; v < vectors; ++v)
                    for (int64_t k = 0; k < m.depth; ++k) {
                        const int64_t i = (v * m.depth + k) * LANES;
                        store(gated + i, load(m.matrix + i) * values[k]);
                    }
                p.b = gated;
            }
            p.a = m.x + row * m.depth;
            p.start = m.start + row * m.start_row;
            p.out = m.out + row * m.columns;
            multiply<kind>(p, left, 0, vectors, m.columns);
            at += left;
        }
    }
}

// Its channels a multiple of `lanes`.
template <int lanes>
void average(const Pool p) {
#pragma omp parallel for num_threads(p.threads)
    for (int64_t index = 0; index < p.frames * p.out_height; ++index) {
        const int64_t row = index % p.out_height * p.stride_height - p.top;
        const float* const frame = p.x + index / p.out_height * p.height * p.width * p.channels;
        float* to = p.out + index * p.out_width * p.channels;
        const int64_t first_row = not_below(row, 0);
        const int64_t last_row = not_above(row + p.kernel_height, p.height);
        for (int64_t at = 0; at < p.out_width; ++at, to += p.channels) {
            const int64_t column = at * p.stride_width - p.left;
            const int64_t first = not_below(column, 0);
            const int64_t last = not_above(column + p.kernel_width, p.width);
            const float share = 1.0f / static_cast<float>((last_row - first_row) * (last - first));
            for (int64_t channel = 0; channel < p.channels; channel += lanes) {
                typename Lanes<lanes>::Vector sum = {};
                for (int64_t i = first_row; i < last_row; ++i)
                    for (int64_t j = first; j < last; ++j)
                        sum += load<lanes>(frame + (i * p.width + j) * p.channels + channel);
                store<lanes>(to + channel, sum * share);
            }
        }
    }
}

}  // namespace
}  // namespace movinet_port
