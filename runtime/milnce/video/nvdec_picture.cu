// One picture of a clip: the square of a decoded surface (NV12 or P016), upright, resized, as RGB.
//
// A thread makes one pixel. Cropping, turning and mirroring are only a first address and two signed steps for each
// plane, so the kernel knows nothing of them. What is weighted with what is in tables that the host makes
// (milnce.video.nvdec_picture), as libswscale and OpenCV make theirs.
//
// Compiled at run time by NVRTC, with nothing included. The tests compile the same text for the host.

struct Axis {
    const int* first;      // for each output, the first source that counts; may lie outside, edges are repeated
    const float* weights;  // for each output, `taps` weights whose sum is 1
    int taps;
    int length;            // sources; those outside are the nearest one inside
};

struct Picture {
    const unsigned char* luma;    // the square's upright top left
    const unsigned char* chroma;  // likewise; U, then V
    unsigned char* out;           // (size, size, 3)
    long long luma_down, luma_right;      // bytes to the next row, to the next column
    long long chroma_down, chroma_right;
    Axis luma_y, luma_x, chroma_y, chroma_x;
    int luma_step, luma_start, red_v, green_u, green_v, blue_u;  // colours, as the order's own function reads them
    int size;
    int wide;       // two bytes a sample (P016), in place of one
    int rgb_first;  // the notebook's order: RGB, then OpenCV's resize; else libswscale's: resize, then RGB
};

static __device__ int inside(int index, int length) {
    return index < 0 ? 0 : (index < length ? index : length - 1);
}

static __device__ int rounded(float value) {
    return (int)floorf(value + 0.5f);
}

static __device__ int level(int value) {
    return value < 0 ? 0 : (value > 255 ? 255 : value);
}

// A sample in 8-bit levels. P016 has its bits on top of 16, whatever their number.
static __device__ float sample(const unsigned char* at, int wide) {
    return wide ? (float)(at[0] | at[1] << 8) * (1.0f / 256.0f) : (float)at[0];
}

static __device__ float weighted(
    const unsigned char* plane, long long down, long long right, Axis y, Axis x, int row, int column, int wide) {
    float sum = 0.0f;
    for (int j = 0; j < y.taps; ++j) {
        const unsigned char* line = plane + down * inside(y.first[row] + j, y.length);
        float across = 0.0f;
        for (int i = 0; i < x.taps; ++i) {
            across += x.weights[column * x.taps + i] * sample(line + right * inside(x.first[column] + i, x.length), wide);
        }
        // libswscale keeps a row in 15 bits and a sign, and only what is too large is cut: its hscale functions.
        sum += y.weights[row * y.taps + j] * fminf(across, 32767.0f / 128.0f);
    }
    return sum;
}

// libswscale's tables for scaled pictures (ff_yuv2rgb_c_init_tables) as arithmetic: chroma moves luma by whole levels.
// The step is an RGB level for each of luma, the rest levels of luma for each of chroma, all in 65536ths.
static __device__ void scaled_rgb(const Picture& p, int luma, int u, int v, int rgb[3]) {
    u = level(u);
    v = level(v);
    int red = (p.red_v * v >> 16) - (p.red_v >> 9);
    int green = (p.green_u * u >> 16) - (p.green_u >> 9) + (p.green_v * v >> 16) - (p.green_v >> 9);
    int blue = (p.blue_u * u >> 16) - (p.blue_u >> 9);
    rgb[0] = level(((luma + red) * p.luma_step + p.luma_start) >> 16);
    rgb[1] = level(((luma + green) * p.luma_step + p.luma_start) >> 16);
    rgb[2] = level(((luma + blue) * p.luma_step + p.luma_start) >> 16);
}

// libswscale's order: luma and chroma are resized on their own, chroma to half the output's width, then turned to RGB.
static __device__ void scaled(const Picture& p, int row, int column, int rgb[3]) {
    int step = p.wide ? 2 : 1;
    float luma = weighted(p.luma, p.luma_down, p.luma_right, p.luma_y, p.luma_x, row, column, p.wide);
    float u = weighted(p.chroma, p.chroma_down, p.chroma_right, p.chroma_y, p.chroma_x, row, column / 2, p.wide);
    float v = weighted(p.chroma + step, p.chroma_down, p.chroma_right, p.chroma_y, p.chroma_x, row, column / 2, p.wide);
    scaled_rgb(p, rounded(luma), rounded(u), rounded(v), rgb);
}

// libswscale's arithmetic for pictures of unchanged size, as its vector instructions do it: eighths of a level, times
// 8192ths. The start is the level of black.
static __device__ void unscaled_rgb(const Picture& p, int luma, int u, int v, int rgb[3]) {
    luma = (luma - p.luma_start) * 8 * p.luma_step >> 16;
    u = (u - 128) * 8;
    v = (v - 128) * 8;
    rgb[0] = level(luma + (v * p.red_v >> 16));
    rgb[1] = level(luma + (u * p.green_u >> 16) + (v * p.green_v >> 16));
    rgb[2] = level(luma + (u * p.blue_u >> 16));
}

// The notebook's order: each source pixel (of 8 bits) to RGB with the chroma it lies on, then OpenCV's two taps.
static __device__ void interpolated(const Picture& p, int row, int column, int rgb[3]) {
    int sums[3] = {0, 0, 0};
    for (int j = 0; j < 2; ++j) {
        int y = inside(p.luma_y.first[row] + j, p.luma_y.length);
        int chroma_y = p.chroma_y.first[y];
        int across[3] = {0, 0, 0};
        for (int i = 0; i < 2; ++i) {
            int x = inside(p.luma_x.first[column] + i, p.luma_x.length);
            const unsigned char* chroma = p.chroma + p.chroma_down * chroma_y + p.chroma_right * p.chroma_x.first[x];
            int pixel[3];
            unscaled_rgb(p, p.luma[p.luma_down * y + p.luma_right * x], chroma[0], chroma[1], pixel);
            for (int c = 0; c < 3; ++c) {
                across[c] += pixel[c] * (int)p.luma_x.weights[column * 2 + i];
            }
        }
        for (int c = 0; c < 3; ++c) {  // OpenCV's VResizeLinear for 8 bits, shift for shift
            sums[c] += ((across[c] >> 4) * (int)p.luma_y.weights[row * 2 + j]) >> 16;
        }
    }
    for (int c = 0; c < 3; ++c) {
        rgb[c] = (sums[c] + 2) >> 2;
    }
}

extern "C" __global__ void milnce_picture(Picture picture) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= picture.size || column >= picture.size) {
        return;
    }
    int rgb[3];
    if (picture.rgb_first) {
        interpolated(picture, row, column, rgb);
    } else {
        scaled(picture, row, column, rgb);
    }
    unsigned char* pixel = picture.out + ((long long)row * picture.size + column) * 3;
    for (int c = 0; c < 3; ++c) {
        pixel[c] = (unsigned char)rgb[c];
    }
}
