// What the functions of the compiled library take: each one structure. Their members are listed here and
// nowhere else: structures.h makes C++'s structures of this list, and library.py makes ctypes' of it.
//
// Between `STRUCTURE(name, base)` and `END` stand the members that follow those of the base, each a whole
// number of words of 64 bits. Who includes this file says first what
// ACTIVATIONS, STRUCTURE, END and MEMBER become.

#define HIGHEST_KERNEL 8
#define MOST_TAPS 7

typedef int64_t Number;
typedef double Real;
// Addresses of float32 numbers, and of frames of them.
typedef const float* Input;
typedef float* Output;
typedef const float* Inputs[MOST_TAPS - 1];
typedef float* Outputs[MOST_TAPS - 1];
#define NUMBER(name) MEMBER(Number, name)
#define REAL(name) MEMBER(Real, name)
#define INPUT(name) MEMBER(Input, name)
#define OUTPUT(name) MEMBER(Output, name)
#define INPUTS(name) MEMBER(Inputs, name)
#define OUTPUTS(name) MEMBER(Outputs, name)

ACTIVATIONS(kNone, kHardSwish, kRelu, kRelu6, kSwish)

STRUCTURE(Work, Nothing)
    // How many share it.
    NUMBER(threads)
END

// Something that a kernel slides over frames for: (height, width) come in, (out_height, out_width) go
// out, and the first cell of the kernel is (top, left) outside the frame.
STRUCTURE(Geometry, Work)
    NUMBER(height) NUMBER(width) NUMBER(out_height) NUMBER(out_width)
    NUMBER(kernel_height) NUMBER(kernel_width) NUMBER(stride_height) NUMBER(stride_width)
    NUMBER(top) NUMBER(left)
END

STRUCTURE(Stem, Geometry)
    // What comes in: `frames`, and from frame to frame, channel to channel, row to row, pixel to pixel.
    INPUT(x)
    NUMBER(frames) NUMBER(frame_step)
    NUMBER(channels) NUMBER(channel_step) NUMBER(row_step) NUMBER(pixel_step)
    // Convolution over space: (channels, kernel height, kernel width, filters).
    INPUT(cells) INPUT(bias)
    NUMBER(filters) NUMBER(activation)
    // What goes out: (frames, out_height, out_width, filters).
    OUTPUT(out)
    NUMBER(out_frame_step)
    // From pixel to pixel: `filters`, or less than nothing where the frame is turned by 180 degrees and
    // `out` is its last pixel.
    NUMBER(out_step)
END

// What a bottleneck's clips and single frames have in common: its expansion and its convolutions.
STRUCTURE(Bottleneck, Geometry)
    // What comes in: (frames, batch, height, width, inputs).
    INPUT(x)
    NUMBER(inputs)
    // Expansion, the matrix laid out as `Product` in frame.cpp wants it.
    INPUT(expansion) INPUT(expansion_bias)
    NUMBER(channels)
    // Depthwise convolution over space, and of clips over frames: (taps, kernel height, kernel width,
    // channels); of single frames there is one tap.
    INPUT(cells) INPUT(bias)
    // Frames that a split-off causal kernel over time sees, after the activation; 0 without one. Its
    // weights are (mixes, channels).
    NUMBER(mixes)
    INPUT(mix) INPUT(mix_bias)
    // What it sees before the first frame, oldest first: each (batch, out_height, out_width, channels).
    INPUTS(held)
    // What goes out: (frames, batch, out_height, out_width), of clips the convolved `channels`, of single
    // frames the bottleneck's `outputs`.
    OUTPUT(out)
END

// (frames, batch) come in and go out. Cut into tiles, see clip.cpp.
STRUCTURE(Clip, Bottleneck)
    NUMBER(frames) NUMBER(batch)
    // Frames that the kernel sees, and those of them before the one that it computes.
    NUMBER(taps) NUMBER(before)
    NUMBER(activation)
    // (strips, frames, batch, channels): sums over the rows of each strip, and in the first one's place,
    // in the end, the means over space.
    OUTPUT(sums)
    // Where the last frames of the clip go, which the kernel over time will see.
    OUTPUTS(kept)
    // Into how many parts rows, frames and panels are cut.
    NUMBER(strips) NUMBER(segments) NUMBER(blocks)
    // For each thread, `room` numbers.
    OUTPUT(scratch)
    NUMBER(room)
END

// A whole bottleneck, of one frame of one video.
STRUCTURE(Layer, Bottleneck)
    // The new frame before the kernel over time, to be held: (out_height, out_width, channels).
    OUTPUT(mixed)
    // And after all convolutions: where `compute_layer` puts it, nobody else sets this.
    OUTPUT(convolved)
    // Squeeze-excitation of vectors of `squeezed` numbers; 0 without one. Of the video's frames `pool` is
    // the sum so far, `total` the sum with this one, and `part` one over their number.
    NUMBER(squeezed) NUMBER(hidden) NUMBER(spatial) NUMBER(whole)
    INPUT(pool) INPUT(part) INPUT(wave)
    OUTPUT(total)
    INPUT(reduce) INPUT(reduce_bias) INPUT(expand) INPUT(expand_bias)
    // Of the gate; below 0 for a sigmoid.
    REAL(limit)
    // Projection, laid out as `Product` wants it, added to what `residual` is: (out_height, out_width,
    // outputs).
    INPUT(projection) INPUT(residual)
    NUMBER(outputs)
END

// A product of the pixels of a clip, of channels that are gated, or are not, and a matrix.
STRUCTURE(Pixels, Work)
    // (frames * batch, cells, depth); the matrix laid out as `Product` wants it.
    INPUT(x) INPUT(matrix)
    NUMBER(frames) NUMBER(batch) NUMBER(cells) NUMBER(depth) NUMBER(columns)
    // (gates, depth): one for each frame of each video, or one for each video; or none.
    INPUT(gates)
    NUMBER(by_frame)
    // What is added: (frames * batch, cells, columns), or (columns) where `start_row` is 0.
    INPUT(start)
    NUMBER(start_row)
    NUMBER(activation)
    OUTPUT(out)
    // For each thread a gated matrix.
    OUTPUT(scratch)
END

// A matrix of `rows` times a vector of `columns` numbers, plus a bias; the matrix laid out as `Product`
// wants it.
STRUCTURE(MatrixVector, Work)
    NUMBER(rows) NUMBER(columns)
    INPUT(matrix) INPUT(x) INPUT(bias)
    OUTPUT(out)
END

// Means of what a kernel sees of each channel: (frames, height, width, channels) come in, (frames,
// out_height, out_width, channels) go out. Cells outside the frame are not counted.
STRUCTURE(Pool, Geometry)
    NUMBER(frames) NUMBER(channels)
    INPUT(x)
    OUTPUT(out)
END

#undef ACTIVATIONS
#undef STRUCTURE
#undef END
#undef MEMBER
