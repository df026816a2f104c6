// What a C++ program needs beside a runtime for ONNX or TensorRT: sentences to word ids, which frames a clip shows,
// and the parts of the pictures' way that are plain arithmetic. The rules are those of docs/engine-abi.md, whose
// section each function names. C++17 and nothing else; __int128 is GCC's and Clang's.
// tests/runtime/test_cpp_example.py compiles this and compares it with the Python library.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <istream>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "unicode_tables.hpp"

namespace milnce {

// ---- Sentences to ids ("Sentences to ids" in the document) ----

inline std::vector<char32_t> decode_utf8(std::string_view text) {
    std::vector<char32_t> codes;
    for (std::size_t at = 0; at < text.size();) {
        const auto lead = static_cast<unsigned char>(text[at]);
        const int length = lead < 0x80 ? 1 : lead >> 5 == 0x6 ? 2 : lead >> 4 == 0xE ? 3 : lead >> 3 == 0x1E ? 4 : 0;
        if (length == 0 || at + static_cast<std::size_t>(length) > text.size()) {
            throw std::invalid_argument("the text is not UTF-8 at byte " + std::to_string(at));
        }
        char32_t code = length == 1 ? lead : lead & (0x7F >> length);
        for (int next = 1; next < length; ++next) {
            const auto byte = static_cast<unsigned char>(text[at + static_cast<std::size_t>(next)]);
            code = byte >> 6 == 2 ? code << 6 | (byte & 0x3F) : 0xFFFFFFFF;
            if (code == 0xFFFFFFFF) break;
        }
        constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
            throw std::invalid_argument("the text is not UTF-8 at byte " + std::to_string(at));
        }
        codes.push_back(code);
        at += static_cast<std::size_t>(length);
    }
    return codes;
}

inline void append_utf8(std::string& text, char32_t code) {
    const auto put = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
        return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    put((more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0) | code >> (6 * more));
    for (int left = more - 1; left >= 0; --left) put(0x80 | ((code >> (6 * left)) & 0x3F));
}

namespace unicode {

// The entry of a table of ranges that holds `code`, or null.
template <typename Entry, std::size_t Size>
const Entry* find(const Entry (&table)[Size], char32_t code) {
    const Entry* after = std::upper_bound(std::begin(table), std::end(table), code,
                                          [](char32_t value, const Entry& entry) { return value < entry.first; });
    return after == std::begin(table) || code > (after - 1)->last ? nullptr : after - 1;
}

}  // namespace unicode

inline bool is_word_character(char32_t code) { return code == U'\'' || unicode::find(unicode::word, code) != nullptr; }

// Whether the capital sigma at `at` ends a word: a cased letter before it and none after it, ignorable ones skipped.
inline bool is_final_sigma(const std::vector<char32_t>& codes, std::size_t at) {
    const auto ignorable = [](char32_t code) { return unicode::find(unicode::ignorable, code) != nullptr; };
    const auto cased = [](char32_t code) { return unicode::find(unicode::cased, code) != nullptr; };
    std::size_t before = at;
    while (before > 0 && ignorable(codes[before - 1])) --before;
    if (before == 0 || !cased(codes[before - 1])) return false;
    std::size_t after = at + 1;
    while (after < codes.size() && ignorable(codes[after])) ++after;
    return after == codes.size() || !cased(codes[after]);
}

inline std::vector<char32_t> lower(const std::vector<char32_t>& codes) {
    std::vector<char32_t> small;
    for (std::size_t at = 0; at < codes.size(); ++at) {
        const char32_t code = codes[at];
        if (code == 0x130) {
            small.insert(small.end(), {U'i', 0x307});
        } else if (code == 0x3A3) {
            small.push_back(is_final_sigma(codes, at) ? 0x3C2 : 0x3C3);
        } else {
            const unicode::Lower* run = unicode::find(unicode::lower, code);
            const bool mapped = run != nullptr && (code - run->first) % static_cast<char32_t>(run->step) == 0;
            small.push_back(mapped ? static_cast<char32_t>(static_cast<std::int64_t>(code) + run->delta) : code);
        }
    }
    return small;
}

// The words of a sentence, in UTF-8: runs of word characters of its lower case.
inline std::vector<std::string> split(std::string_view sentence) {
    std::vector<std::string> words;
    bool inside = false;
    for (const char32_t code : lower(decode_utf8(sentence))) {
        const bool belongs = is_word_character(code);
        if (belongs && !inside) words.emplace_back();
        if (belongs) append_utf8(words.back(), code);
        inside = belongs;
    }
    return words;
}

// The lines of vocabulary.txt: split at "\n" alone, the one that ends the file removed.
inline std::vector<std::string> read_vocabulary(std::istream& file) {
    std::vector<std::string> words;
    for (std::string line; std::getline(file, line);) words.push_back(line);
    return words;
}

class Tokenizer {
public:
    Tokenizer(const std::vector<std::string>& words, std::size_t max_words) : max_words_(max_words) {
        if (words.empty() || max_words == 0) throw std::invalid_argument("a tokenizer needs words and max_words");
        // Where a word occurs twice, the later line wins.
        for (std::size_t line = 0; line < words.size(); ++line) ids_[words[line]] = static_cast<std::int64_t>(line) + 1;
    }

    // One row of the text tower's input: unknown words dropped, then cut or padded with 0 to max_words.
    std::vector<std::int64_t> operator()(std::string_view sentence) const {
        std::vector<std::int64_t> row;
        for (const std::string& word : split(sentence)) {
            const auto found = ids_.find(word);
            if (found != ids_.end()) row.push_back(found->second);
        }
        row.resize(max_words_, 0);
        return row;
    }

private:
    std::size_t max_words_;
    std::unordered_map<std::string, std::int64_t> ids_;
};

// ---- Which frames a clip shows ("Windows" and "Frames of a window") ----

// An exact time or rate. Times of videos stay far below the 2^127 that fit.
class Fraction {
public:
    __extension__ typedef __int128 Wide;

    Fraction(Wide numerator = 0, Wide denominator = 1) : numerator_(numerator), denominator_(denominator) {
        if (denominator_ == 0) throw std::invalid_argument("a fraction needs a denominator");
        if (denominator_ < 0) numerator_ = -numerator_, denominator_ = -denominator_;
        Wide a = numerator_ < 0 ? -numerator_ : numerator_, b = denominator_;
        while (b != 0) std::swap(a %= b, b);
        if (a > 1) numerator_ /= a, denominator_ /= a;
    }

    Wide numerator() const { return numerator_; }
    Wide denominator() const { return denominator_; }

    friend Fraction operator+(Fraction a, Fraction b) {
        return {a.numerator_ * b.denominator_ + b.numerator_ * a.denominator_, a.denominator_ * b.denominator_};
    }
    friend Fraction operator-(Fraction a, Fraction b) { return a + Fraction(-b.numerator_, b.denominator_); }
    friend Fraction operator*(Fraction a, Fraction b) {
        return {a.numerator_ * b.numerator_, a.denominator_ * b.denominator_};
    }
    friend Fraction operator/(Fraction a, Fraction b) {
        return {a.numerator_ * b.denominator_, a.denominator_ * b.numerator_};
    }
    friend bool operator<(Fraction a, Fraction b) {
        return a.numerator_ * b.denominator_ < b.numerator_ * a.denominator_;
    }

    // The nearest double. One division of exact numbers rounds once, which is why both must fit in 53 bits.
    double nearest() const {
        constexpr Wide limit = Wide{1} << std::numeric_limits<double>::digits;
        if (numerator_ > limit || numerator_ < -limit || denominator_ > limit) {
            throw std::overflow_error("this time has too many digits to be turned into seconds exactly");
        }
        return static_cast<double>(numerator_) / static_cast<double>(denominator_);
    }

private:
    Wide numerator_, denominator_;
};

// To the nearest whole number, halves away from zero, as FFmpeg's AV_ROUND_NEAR_INF.
inline std::int64_t round_half_away(Fraction value) {
    const bool negative = value < Fraction(0);
    const Fraction raised = (negative ? Fraction(0) - value : value) + Fraction(1, 2);
    const auto nearest = static_cast<std::int64_t>(raised.numerator() / raised.denominator());
    return negative ? -nearest : nearest;
}

// Seconds cut to microseconds, of the shortest decimal that means this double (not of its binary value).
inline Fraction cut_to_microseconds(double seconds) {
    std::array<char, 512> text;
    const auto end = std::to_chars(text.data(), text.data() + text.size(), seconds, std::chars_format::fixed).ptr;
    Fraction::Wide microseconds = 0;
    int decimals = -1;
    for (const char* at = text.data(); at != end && decimals < 6; ++at) {
        if (*at == '.') {
            decimals = 0;
        } else {
            microseconds = microseconds * 10 + (*at - '0');
            decimals += decimals >= 0;
        }
    }
    for (decimals = std::max(decimals, 0); decimals < 6; ++decimals) microseconds *= 10;
    return {microseconds, 1000000};
}

// Starts of windows that are spread over [start, end]: the presets with a number of windows.
inline std::vector<Fraction> spread_starts(Fraction start, Fraction end, Fraction fps, int frames, int windows) {
    const Fraction room = end - Fraction(frames) / fps - Fraction(2, 5);
    const double first = start.nearest(), last = (room < start ? start : room).nearest();
    std::vector<Fraction> starts;
    // NumPy's linspace, operation by operation; compile with -ffp-contract=off where the target has fused ones.
    const double step = windows > 1 ? (last - first) / (windows - 1) : 0;
    for (int window = 0; window < windows; ++window) {
        const bool at_end = windows > 1 && window == windows - 1;
        starts.push_back(cut_to_microseconds(at_end ? last : window * step + first));
    }
    return starts;
}

// Starts of windows that slide over [start, end] by `stride` slots, and one more that ends with it.
inline std::vector<Fraction> sliding_starts(Fraction start, Fraction end, Fraction fps, int frames, int stride) {
    const std::int64_t last = std::max<std::int64_t>(0, round_half_away((end - start) * fps) - frames);
    std::vector<Fraction> starts;
    for (std::int64_t slot = 0; slot <= last; slot += stride) starts.push_back(start + Fraction(slot) / fps);
    if (last % stride != 0) starts.push_back(start + Fraction(last) / fps);
    return starts;
}

constexpr int black = -1;

// For each slot of a window the index of the frame that it shows, or `black`.
//   times: when each frame begins, ascending; end: when the video ends, or its last frame if that is later.
//   sliding: whether the frame on screen when the window starts is kept, as sliding windows keep it.
inline std::vector<int> slots(const std::vector<Fraction>& times, Fraction end, Fraction start, Fraction fps,
                              int frames, bool sliding) {
    std::vector<int> shown;
    for (std::size_t at = 0; at < times.size() && shown.size() < static_cast<std::size_t>(frames); ++at) {
        const bool is_last = at + 1 == times.size();
        const std::int64_t until = round_half_away(((is_last ? end : times[at + 1]) - start) * fps);
        const bool begins = until > 0 && (sliding || !(times[at] < start));
        if (shown.empty() && !begins && !is_last) continue;
        const std::int64_t filled = std::max<std::int64_t>(1, std::min<std::int64_t>(frames, until));
        const std::int64_t missing = std::max<std::int64_t>(0, filled - static_cast<std::int64_t>(shown.size()));
        shown.insert(shown.end(), static_cast<std::size_t>(missing), static_cast<int>(at));
    }
    shown.resize(static_cast<std::size_t>(frames), black);
    return shown;
}

// The same for presets that take frames as they come and repeat them: the first ones that are shown in [start, end).
inline std::vector<int> slots_as_they_come(const std::vector<Fraction>& times, Fraction start, Fraction end,
                                           int frames) {
    std::vector<int> taken;
    for (std::size_t at = 0; at < times.size() && taken.size() < static_cast<std::size_t>(frames); ++at) {
        if (!taken.empty() && !(times[at] < end)) break;
        if (at + 1 == times.size() || start < times[at + 1]) taken.push_back(static_cast<int>(at));
    }
    if (taken.empty()) throw std::invalid_argument("there is no frame");
    const int count = static_cast<int>(taken.size()), repeats = (frames + count - 1) / count;
    std::vector<int> shown;
    for (int slot = 0; slot < frames; ++slot) shown.push_back(taken[static_cast<std::size_t>(slot / repeats)]);
    return shown;
}

// ---- Pictures ("Pictures": what is not libavfilter's) ----

// 8-bit RGB, rows from the top, three bytes a pixel without gaps.
struct Picture {
    int height = 0, width = 0;
    std::vector<std::uint8_t> pixels;

    const std::uint8_t* at(int row, int column) const {
        const auto index = static_cast<std::size_t>(row) * static_cast<std::size_t>(width);
        return &pixels[(index + static_cast<std::size_t>(column)) * 3];
    }
};

inline Picture crop_centre_square(const Picture& picture) {
    const int side = std::min(picture.height, picture.width);
    const int top = picture.height / 2 - side / 2, left = picture.width / 2 - side / 2;
    Picture square{side, side, {}};
    for (int row = 0; row < side; ++row) {
        const std::uint8_t* first = picture.at(top + row, left);
        square.pixels.insert(square.pixels.end(), first, first + 3 * static_cast<std::size_t>(side));
    }
    return square;
}

struct Tap {
    int near, far;                 // source indices
    int near_weight, far_weight;  // of 2048
};

// The two source pixels of each output pixel along an axis, with OpenCV's weights of 11 bits.
inline std::vector<Tap> bilinear_taps(int length, int size) {
    std::vector<Tap> taps;
    for (int output = 0; output < size; ++output) {
        const auto centre = static_cast<float>((output + 0.5) * (static_cast<double>(length) / size) - 0.5);
        const float first = std::floor(centre), fraction = centre - first;
        const auto clamp = [length](float at) { return std::clamp(static_cast<int>(at), 0, length - 1); };
        taps.push_back({clamp(first), clamp(first + 1), static_cast<int>(std::nearbyint((1.0f - fraction) * 2048)),
                        static_cast<int>(std::nearbyint(fraction * 2048))});
    }
    return taps;
}

// OpenCV's INTER_LINEAR for 8-bit pictures, shift for shift.
inline Picture resize_bilinear(const Picture& picture, int size) {
    const std::vector<Tap> rows = bilinear_taps(picture.height, size);
    const std::vector<Tap> columns = bilinear_taps(picture.width, size);
    Picture resized{size, size, {}};
    resized.pixels.reserve(static_cast<std::size_t>(size) * static_cast<std::size_t>(size) * 3);
    for (const Tap& row : rows) {
        for (const Tap& column : columns) {
            for (int channel = 0; channel < 3; ++channel) {
                const auto mixed = [&](int source) {
                    return picture.at(source, column.near)[channel] * column.near_weight +
                           picture.at(source, column.far)[channel] * column.far_weight;
                };
                const int above = ((mixed(row.near) >> 4) * row.near_weight) >> 16;
                const int below = ((mixed(row.far) >> 4) * row.far_weight) >> 16;
                resized.pixels.push_back(static_cast<std::uint8_t>((above + below + 2) >> 2));
            }
        }
    }
    return resized;
}

// A clip (T, H, W, 3) of bytes as (3, T, H, W) of floats in [0, 1]: the float32 form of the video input.
inline std::vector<float> to_planar_float(const std::vector<std::uint8_t>& clip) {
    const std::size_t pixels = clip.size() / 3;
    std::vector<float> planes(clip.size());
    for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
        for (std::size_t channel = 0; channel < 3; ++channel) {
            planes[channel * pixels + pixel] = static_cast<float>(clip[pixel * 3 + channel]) / 255.0f;
        }
    }
    return planes;
}

// ---- Files ("Plans": compare the hash before deserialising) ----

// Hex SHA-256 of `data` (FIPS 180-4).
inline std::string sha256(std::string data) {
    // The first 32 bits of the fractional parts of the cube roots and of the square roots of the primes.
    std::array<std::uint32_t, 64> constants{};
    std::array<std::uint32_t, 8> state{};
    const auto fraction = [](long double root) {
        return static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0L);
    };
    for (unsigned candidate = 2, count = 0; count < constants.size(); ++candidate) {
        bool prime = true;
        for (unsigned divisor = 2; divisor * divisor <= candidate; ++divisor) prime = prime && candidate % divisor != 0;
        if (!prime) continue;
        if (count < state.size()) state[count] = fraction(std::sqrt(static_cast<long double>(candidate)));
        constants[count++] = fraction(std::cbrt(static_cast<long double>(candidate)));
    }
    const std::uint64_t bits = static_cast<std::uint64_t>(data.size()) * 8;
    data.push_back(static_cast<char>(0x80));
    while (data.size() % 64 != 56) data.push_back(0);
    for (int shift = 56; shift >= 0; shift -= 8) data.push_back(static_cast<char>(bits >> shift));
    const auto turn = [](std::uint32_t value, int by) { return value >> by | value << (32 - by); };
    for (std::size_t block = 0; block < data.size(); block += 64) {
        std::array<std::uint32_t, 64> words{};
        for (std::size_t byte = 0; byte < 64; ++byte) {
            words[byte / 4] = words[byte / 4] << 8 | static_cast<unsigned char>(data[block + byte]);
        }
        for (std::size_t at = 16; at < 64; ++at) {
            const std::uint32_t a = words[at - 15], b = words[at - 2];
            words[at] = words[at - 16] + words[at - 7] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) +
                        (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
        }
        std::array<std::uint32_t, 8> s = state;
        for (std::size_t at = 0; at < 64; ++at) {
            const std::uint32_t first = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                                        ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[at] + words[at];
            const std::uint32_t second = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                                         ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
        }
        for (std::size_t at = 0; at < 8; ++at) state[at] += s[at];
    }
    std::string hex;
    for (const std::uint32_t word : state) {
        for (int shift = 28; shift >= 0; shift -= 4) hex.push_back("0123456789abcdef"[word >> shift & 0xF]);
    }
    return hex;
}

}  // namespace milnce
