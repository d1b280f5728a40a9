// The library that "eager" calls where it could be compiled when movinet-port was installed (setup.py):
// frame.cpp and clip.cpp for one kind of CPU, behind functions of plain C. extension.py calls them;
// each takes one structure, which is declared there with the same members in the same order.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include <immintrin.h>
#include <omp.h>

#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define HIGHEST_KERNEL 8
#define MOST_TAPS 7

#include "frame.cpp"

#include "clip.cpp"

namespace {

using namespace movinet_port;

// A convolution over space.
struct Geometry {
    int64_t height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width, top, left;
};

template <typename Convolution>
void set_geometry(Convolution* to, const Geometry& from) {
    to->height = from.height;
    to->width = from.width;
    to->out_height = from.out_height;
    to->out_width = from.out_width;
    to->kernel_height = from.kernel_height;
    to->kernel_width = from.kernel_width;
    to->stride_height = from.stride_height;
    to->stride_width = from.stride_width;
    to->top = from.top;
    to->left = from.left;
}

// See `Stem`.
struct StemArguments {
    Geometry geometry;
    int64_t frames, frame_step, channel_step, row_step, pixel_step, out_frame_step, out_step;
    int64_t channels, filters, activation;
    const float *x, *cells, *bias;
    float* out;
};

// See `Clip`.
struct ClipArguments {
    Geometry geometry;
    int64_t frames, batch, inputs, channels, taps, before, mixes;
    int64_t strips, segments, blocks, room, threads, activation;
    const float *x, *expansion, *expansion_bias, *cells, *bias, *mix, *mix_bias;
    float *out, *sums, *scratch;
    const float* held[MOST_TAPS - 1];
    float* kept[MOST_TAPS - 1];
};

// See `Pixels`.
struct PixelsArguments {
    int64_t start_row, frames, batch, cells, depth, columns, by_frame, threads, activation;
    const float *x, *matrix, *gates, *start;
    float *out, *scratch;
};

// See `AveragePool`.
struct PoolArguments {
    Geometry geometry;
    int64_t frames, channels, threads;
    const float* x;
    float* out;
};

// See `Layer`.
struct FrameArguments {
    Geometry geometry;
    int64_t inputs, channels, outputs, frames, squeezed, hidden, spatial, whole;
    double limit;
    const float *x, *residual, *expansion, *expansion_bias, *cells, *bias, *taps, *temporal_bias;
    const float *reduce, *reduce_bias, *expand, *expand_bias, *projection, *pool, *part, *wave;
    float *mixed, *total, *out;
    const float* held[MOST_TAPS - 1];
};

struct VectorArguments {
    int64_t rows, columns;
    const float *matrix, *x, *bias;
    float* out;
};

// Call `body` with an activation that the compiler knows: those of the published networks.
template <typename Body>
void with_activation(int64_t activation, const Body& body) {
    if (activation == kSwish)
        body(std::integral_constant<Activation, kSwish>());
    else
        body(std::integral_constant<Activation, kHardSwish>());
}

}  // namespace

extern "C" {

int64_t movinet_port_lanes() { return LANES; }

// What all structures take: who declared others learns it here.
int64_t movinet_port_size() {
    return sizeof(StemArguments) + sizeof(ClipArguments) + sizeof(PixelsArguments) +
           sizeof(PoolArguments) + sizeof(FrameArguments) + sizeof(VectorArguments);
}

void movinet_port_stem(const StemArguments* a) {
    Stem s;
    set_geometry(&s, a->geometry);
    s.channels = a->channels;
    s.channel_step = a->channel_step;
    s.row_step = a->row_step;
    s.pixel_step = a->pixel_step;
    s.filters = a->filters;
    s.cells = a->cells;
    s.bias = a->bias;
    s.out_step = a->out_step;
    with_activation(a->activation, [&](auto kind) {
        for (int64_t frame = 0; frame < a->frames; ++frame) {
            s.x = a->x + frame * a->frame_step;
            s.out = a->out + frame * a->out_frame_step;
            if (s.filters % LANES)
                compute_stem_of<kind.value, LANES / 2>(s);
            else
                compute_stem_of<kind.value, LANES>(s);
        }
    });
}

void movinet_port_clip(const ClipArguments* a) {
    Clip c = {};
    Layer& l = c.layer;
    set_geometry(&l, a->geometry);
    l.inputs = a->inputs;
    l.channels = a->channels;
    l.expansion = a->expansion;
    l.expansion_bias = a->expansion_bias;
    l.cells = a->cells;
    l.bias = a->bias;
    c.x = a->x;
    c.out = a->out;
    c.sums = a->sums;
    c.frames = a->frames;
    c.batch = a->batch;
    c.taps = a->taps;
    c.before = a->before;
    c.mixes = a->mixes;
    c.mix = a->mix;
    c.mix_bias = a->mix_bias;
    for (int i = 0; i < MOST_TAPS - 1; ++i) {
        c.held[i] = a->held[i];
        c.kept[i] = a->kept[i];
    }
    c.strips = a->strips;
    c.segments = a->segments;
    c.blocks = a->blocks;
    c.scratch = a->scratch;
    c.room = a->room;
    with_activation(a->activation, [&](auto kind) {
        compute_clip<kind.value>(c, static_cast<int>(a->threads));
    });
}

void movinet_port_pixels(const PixelsArguments* a) {
    Pixels m;
    m.x = a->x;
    m.b = a->matrix;
    m.gates = a->gates;
    m.start = a->start;
    m.start_row = a->start_row;
    m.out = a->out;
    m.frames = a->frames;
    m.batch = a->batch;
    m.cells = a->cells;
    m.depth = a->depth;
    m.columns = a->columns;
    m.by_frame = a->by_frame;
    m.scratch = a->scratch;
    const int threads = static_cast<int>(a->threads);
    if (a->activation == kNone) return multiply_pixels<kNone>(m, threads);
    with_activation(a->activation,
                    [&](auto kind) { multiply_pixels<kind.value>(m, threads); });
}

void movinet_port_pool(const PoolArguments* a) {
    AveragePool p;
    p.x = a->x;
    p.out = a->out;
    p.frames = a->frames;
    p.height = a->geometry.height;
    p.width = a->geometry.width;
    p.out_height = a->geometry.out_height;
    p.out_width = a->geometry.out_width;
    p.channels = a->channels;
    p.kernel = a->geometry.kernel_height;
    p.stride = a->geometry.stride_height;
    p.top = a->geometry.top;
    p.left = a->geometry.left;
    if (p.channels % LANES)
        average<LANES / 2>(p, static_cast<int>(a->threads));
    else
        average<LANES>(p, static_cast<int>(a->threads));
}

void movinet_port_frame(const FrameArguments* a) {
    Layer l = {};
    set_geometry(&l, a->geometry);
    l.inputs = a->inputs;
    l.channels = a->channels;
    l.outputs = a->outputs;
    l.frames = a->frames;
    l.squeezed = a->squeezed;
    l.hidden = a->hidden;
    l.spatial = a->spatial;
    l.whole = a->whole;
    l.limit = static_cast<float>(a->limit);
    l.x = a->x;
    l.residual = a->residual;
    l.expansion = a->expansion;
    l.expansion_bias = a->expansion_bias;
    l.cells = a->cells;
    l.bias = a->bias;
    l.taps = a->taps;
    l.temporal_bias = a->temporal_bias;
    l.reduce = a->reduce;
    l.reduce_bias = a->reduce_bias;
    l.expand = a->expand;
    l.expand_bias = a->expand_bias;
    l.projection = a->projection;
    l.pool = a->pool;
    l.part = a->part;
    l.wave = a->wave;
    l.mixed = a->mixed;
    l.total = a->total;
    l.out = a->out;
    for (int i = 0; i < MOST_TAPS - 1; ++i) l.held[i] = a->held[i];
    compute_layer<kHardSwish>(l);
}

void movinet_port_vector(const VectorArguments* a) {
    multiply_whole(a->matrix, a->x, a->columns, a->bias, a->rows, a->out);
}

}  // extern "C"
