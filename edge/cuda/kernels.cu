// What a GPU does besides the engine: crops out of the strip's ring, its reduction, classes of scores, the flat field.
//
//   gather            ring, capacity, width, begin, line_stop, corners, crops, lines, columns, out
//   reduce            ring, capacity, width, begin, line_stop, line, column, factor, lines, columns, out
//   classes_of_floats scores, n, channels, height, width, top, left, lines, columns, meaning, least, out
//   classes_of_halves scores, n, channels, height, width, top, left, lines, columns, meaning, least, out
//   classes_of_masks  scores, n, height, width, top, left, lines, columns, out
//   flat_field        raw, out, capacity, width, line, lines, dark, gain
//
// ring (capacity, width) holds line l of the strip in row l mod capacity. The run's lines are [begin, line_stop), not empty, its
// columns [0, width): what lies beyond is reflected without repeating the border, as often as it takes, as by
// edge.window.StripWindow.cut. Whatever the arguments, nothing is read beyond the ring.
//
// No header, no shared memory, no barrier: the same source runs on a CPU, thread after thread, in the tests.
// Grid and block may be of any size that covers the output (edge/cuda/kernels.py): x is columns, y lines, z crops.

typedef unsigned char Byte;
typedef unsigned short Half;
typedef long long Line;

static_assert(sizeof(Line) == 8 && sizeof(unsigned) == 4 && sizeof(Half) == 2, "sizes that the host's arguments have");

const int WORD = 4;  // bytes that a thread moves at once, where source and target are aligned

// What scores mean; edge/cuda/kernels.py has the same numbers.
enum Meaning { SOFTMAX_LOGITS = 0, SOFTMAX_PROBABILITIES = 1, SIGMOID_LOGITS = 2, SIGMOID_PROBABILITIES = 3 };

// The remainder that is never negative.
__device__ inline Line modulo(Line value, Line divisor) {
    Line remainder = value % divisor;
    return remainder < 0 ? remainder + divisor : remainder;
}

// A position folded into [start, stop) without repeating the border; a single position repeats.
__device__ inline Line reflected(Line position, Line start, Line stop) {
    if (position >= start && position < stop) return position;
    Line last = stop - 1 - start;
    if (last <= 0) return start;
    Line folded = modulo(position - start, 2 * last);
    return start + (folded > last ? 2 * last - folded : folded);
}

// Where the ring holds a line of the strip.
__device__ inline const Byte *row_of(const Byte *ring, int capacity, int width, Line begin, Line line_stop, Line line) {
    return ring + modulo(reflected(line, begin, line_stop), capacity) * width;
}

__device__ inline bool aligned(const void *address) {
    return (reinterpret_cast<unsigned long long>(address) & (WORD - 1)) == 0;
}

__device__ inline unsigned word_at(const Byte *bytes) {
    if (aligned(bytes)) return *reinterpret_cast<const unsigned *>(bytes);
    return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<unsigned>(bytes[3]) << 24;
}

// Write the first `count` bytes of a word.
__device__ inline void write_word(Byte *bytes, unsigned word, int count) {
    if (count == WORD && aligned(bytes)) {
        *reinterpret_cast<unsigned *>(bytes) = word;
        return;
    }
    for (int byte = 0; byte < count; ++byte) bytes[byte] = static_cast<Byte>(word >> 8 * byte);
}

// The value of a binary16, exactly: its exponent's bias is 15, a float's 127. Source: IEEE 754-2008, 3.6.
__device__ inline float value_of(Half half) {
    unsigned sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);  // infinite, or not a number
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 5192296858534827628530496329220096.0f));
}

__device__ inline float value_of(float value) { return value; }

// Crops out of the strip. corners: line and column of each, (crops, 2), may lie beyond the strip. out (crops, lines, columns).
extern "C" __global__ void gather(
    const Byte *__restrict__ ring, int capacity, int width, Line begin, Line line_stop, const Line *__restrict__ corners,
    int crops, int lines, int columns, Byte *__restrict__ out) {
    int crop = blockIdx.z * blockDim.z + threadIdx.z, line = blockIdx.y * blockDim.y + threadIdx.y;
    if (crop >= crops || line >= lines) return;
    const Byte *row = row_of(ring, capacity, width, begin, line_stop, corners[2 * crop] + line);
    Line first = corners[2 * crop + 1];
    Byte *target = out + (static_cast<Line>(crop) * lines + line) * columns;
    // a thread takes several words of one line: where the line lies costs more than a word
    int step = gridDim.x * blockDim.x * WORD;
    for (int column = (blockIdx.x * blockDim.x + threadIdx.x) * WORD; column < columns; column += step) {
        int count = columns - column < WORD ? columns - column : WORD;
        Line source = first + column;
        unsigned word = 0;
        if (count == WORD && source >= 0 && source + WORD <= width) {
            word = word_at(row + source);
        } else {
            for (int byte = 0; byte < count; ++byte) {
                word |= static_cast<unsigned>(row[reflected(source + byte, 0, width)]) << 8 * byte;
            }
        }
        write_word(target + column, word, count);
    }
}

// A rectangle of the strip averaged over factor x factor pixels: out[y, x] is the mean of those from (line + y factor,
// column + x factor) on, each of them reflected. out (lines, columns). factor at most 256: sums are then exact in a float.
//
// Rounded as cv2.resize with INTER_AREA does: of 2 x 2 pixels a half goes up; else the sum times the float 1 / factor^2 goes to
// the nearest, from a half to the even one. Source: OpenCV, modules/imgproc/src/resize.cpp, ResizeAreaFastVec and
// resizeAreaFast_Invoker.
extern "C" __global__ void reduce(
    const Byte *__restrict__ ring, int capacity, int width, Line begin, Line line_stop, Line line, Line column, int factor,
    int lines, int columns, Byte *__restrict__ out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= columns || y >= lines) return;
    Line top = line + static_cast<Line>(y) * factor, left = column + static_cast<Line>(x) * factor;
    bool within = left >= 0 && left + factor <= width;
    unsigned sum = 0;
    for (int down = 0; down < factor; ++down) {
        const Byte *row = row_of(ring, capacity, width, begin, line_stop, top + down);
        for (int right = 0; right < factor; ++right) {
            sum += row[within ? left + right : reflected(left + right, 0, width)];
        }
    }
    Byte mean;
    if (factor == 2) {
        mean = static_cast<Byte>((sum + 2) >> 2);
    } else {
        mean = static_cast<Byte>(rintf(static_cast<float>(sum) * (1.0f / static_cast<float>(factor * factor))));
    }
    out[static_cast<Line>(y) * columns + x] = mean;
}

// Class and confidence of one pixel, whose scores lie `plane` apart, as edge.scores.classify gives them; 0 where any is not a
// number. Comparisons are those of floats; only where something is found is its probability computed, in double.
//
// numpy's exp and CUDA's are each within an ulp of exp: the probabilities differ by at most (channels + 4) 2^-52 of them, hence
// the confidence by one step at most, and only where 255 probabilities lie that close to a half.
template <typename Score>
__device__ inline void classify(
    const Score *scores, Line plane, int channels, int meaning, float least, Byte *mask, Byte *confidence) {
    bool softmax = meaning == SOFTMAX_LOGITS || meaning == SOFTMAX_PROBABILITIES;
    float highest = value_of(scores[0]);
    int winner = 0;
    bool numbers = highest == highest;
    for (int channel = 1; channel < channels; ++channel) {
        float score = value_of(scores[channel * plane]);
        numbers = numbers && score == score;
        if (score > highest) {
            highest = score;
            winner = channel;
        }
    }
    *mask = 0;
    *confidence = 0;
    if (!numbers || !(softmax ? winner > 0 : highest >= least)) return;
    double probability = highest;
    if (meaning == SIGMOID_LOGITS) probability = 1.0 / (1.0 + exp(-probability));
    if (meaning == SOFTMAX_LOGITS) {
        double sum = 0.0;
        for (int channel = 0; channel < channels; ++channel) {
            sum += exp(static_cast<double>(value_of(scores[channel * plane])) - static_cast<double>(highest));
        }
        probability = 1.0 / sum;
    }
    *mask = static_cast<Byte>(softmax ? winner : winner + 1);
    if (!(probability > 0.0)) return;  // also not a number: the highest score was infinite
    *confidence = static_cast<Byte>(rint((probability < 1.0 ? probability : 1.0) * 255.0));
}

// Masks of the rectangle (lines, columns) from (top, left) on of scores (n, channels, height, width). least: of a sigmoid, the
// lowest score that counts. out (n, 2, lines, columns): class and confidence.
template <typename Score>
__device__ inline void classify_rectangle(
    const Score *__restrict__ scores, int n, int channels, int height, int width, int top, int left, int lines, int columns,
    int meaning, float least, Byte *__restrict__ out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    int tile = blockIdx.z * blockDim.z + threadIdx.z;
    if (x >= columns || y >= lines || tile >= n) return;
    Line plane = static_cast<Line>(height) * width, area = static_cast<Line>(lines) * columns;
    const Score *pixel = scores + tile * plane * channels + static_cast<Line>(top + y) * width + left + x;
    Byte *mask = out + 2 * tile * area + static_cast<Line>(y) * columns + x;
    classify(pixel, plane, channels, meaning, least, mask, mask + area);
}

extern "C" __global__ void classes_of_floats(
    const float *__restrict__ scores, int n, int channels, int height, int width, int top, int left, int lines, int columns,
    int meaning, float least, Byte *__restrict__ out) {
    classify_rectangle(scores, n, channels, height, width, top, left, lines, columns, meaning, least, out);
}

// The same of binary16 scores, each taken as the float of its value.
extern "C" __global__ void classes_of_halves(
    const Half *__restrict__ scores, int n, int channels, int height, int width, int top, int left, int lines, int columns,
    int meaning, float least, Byte *__restrict__ out) {
    classify_rectangle(scores, n, channels, height, width, top, left, lines, columns, meaning, least, out);
}

// The same of a mask head's planes (n, 2, height, width): class and confidence as the engine has decided, 0 where the class is.
extern "C" __global__ void classes_of_masks(
    const Byte *__restrict__ scores, int n, int height, int width, int top, int left, int lines, int columns,
    Byte *__restrict__ out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    int tile = blockIdx.z * blockDim.z + threadIdx.z;
    if (x >= columns || y >= lines || tile >= n) return;
    Line plane = static_cast<Line>(height) * width, area = static_cast<Line>(lines) * columns;
    const Byte *pixel = scores + 2 * tile * plane + static_cast<Line>(top + y) * width + left + x;
    Byte *mask = out + 2 * tile * area + static_cast<Line>(y) * columns + x;
    mask[0] = pixel[0];
    mask[area] = pixel[0] > 0 ? pixel[plane] : 0;
}

// Lines [line, line + lines) of the ring `raw` corrected column by column into the ring `out`, which may be the same; both are
// (capacity, width), and lines at most capacity. dark (width,): grey levels in 1/256; gain (width,): in 1/4096, below 16.
//
// grey level = (raw 2^8 - dark) gain / 2^20, not below 0, a half up, not above 255. In 32 bits without overflow: the difference
// is at most 255 2^8 = 65280, times 65535 is 4278124800, plus 2^19 is 4278649088, less than 2^32 = 4294967296.
extern "C" __global__ void flat_field(
    const Byte *raw, Byte *out, int capacity, int width, Line line, int lines, const Half *dark, const Half *gain) {
    int x = (blockIdx.x * blockDim.x + threadIdx.x) * WORD, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= lines) return;
    Line start = modulo(line + y, capacity) * width + x;
    int count = width - x < WORD ? width - x : WORD;
    unsigned word = 0, corrected = 0;
    if (count == WORD) {
        word = word_at(raw + start);
    } else {
        for (int byte = 0; byte < count; ++byte) word |= static_cast<unsigned>(raw[start + byte]) << 8 * byte;
    }
    for (int byte = 0; byte < count; ++byte) {
        unsigned level = (word >> 8 * byte & 0xffu) << 8, offset = dark[x + byte];
        unsigned above = level > offset ? level - offset : 0;
        unsigned grey = (above * gain[x + byte] + (1u << 19)) >> 20;
        corrected |= (grey < 255u ? grey : 255u) << 8 * byte;
    }
    write_word(out + start, corrected, count);
}
