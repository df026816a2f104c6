// The functions of milnce.hpp from a shell, one call a line of standard input. Build it with
//   g++ -std=c++17 -O2 -ffp-contract=off milnce_tool.cpp -o milnce_tool
//
//   milnce_tool ids VOCABULARY.txt MAX_WORDS    sentences -> ids
//   milnce_tool words                           sentences -> words
//   milnce_tool starts                          spread|sliding START END FPS FRAMES WINDOWS|STRIDE -> starts
//   milnce_tool slots                           spread|sliding START END FPS FRAMES TIME... -> a frame's index a slot
//                                               (-1 is black); first START END FRAMES TIME... likewise
//   milnce_tool square HEIGHT WIDTH SIZE        a picture's bytes -> the centre square, scaled
//   milnce_tool planar                          a clip's bytes -> the float32 form's
//   milnce_tool sha256                          bytes -> hex
// Times and rates are fractions: 3, 16/5.
#include <fstream>
#include <iostream>
#include <sstream>

#include "milnce.hpp"

namespace {

milnce::Fraction read_fraction(std::istream& in) {
    std::string text;
    if (!(in >> text)) throw std::invalid_argument("a fraction is missing");
    const std::size_t slash = text.find('/');
    const std::int64_t denominator = slash == std::string::npos ? 1 : std::stoll(text.substr(slash + 1));
    return {std::stoll(text.substr(0, slash)), denominator};
}

std::string to_text(milnce::Fraction value) {
    return std::to_string(static_cast<std::int64_t>(value.numerator())) + "/" +
           std::to_string(static_cast<std::int64_t>(value.denominator()));
}

std::string read_all() { return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()}; }

void write_bytes(const void* data, std::size_t size) {
    std::cout.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

template <typename Items>
std::string joined(const Items& items) {
    std::ostringstream line;
    for (std::size_t at = 0; at < items.size(); ++at) line << (at ? " " : "") << items[at];
    return line.str();
}

std::string starts(std::istream& in) {
    std::string layout;
    in >> layout;
    const milnce::Fraction start = read_fraction(in), end = read_fraction(in), fps = read_fraction(in);
    int frames = 0, count = 0;
    if (!(in >> frames >> count)) throw std::invalid_argument("frames and windows, or frames and stride, are missing");
    std::vector<std::string> found;
    for (const milnce::Fraction& one : layout == "sliding" ? milnce::sliding_starts(start, end, fps, frames, count)
                                                           : milnce::spread_starts(start, end, fps, frames, count)) {
        found.push_back(to_text(one));
    }
    return joined(found);
}

std::string slots(std::istream& in) {
    std::string layout;
    in >> layout;
    const milnce::Fraction start = read_fraction(in), end = read_fraction(in);
    const milnce::Fraction fps = layout == "first" ? milnce::Fraction(1) : read_fraction(in);
    int frames = 0;
    if (!(in >> frames)) throw std::invalid_argument("the number of frames is missing");
    std::vector<milnce::Fraction> times;
    while (in >> std::ws, in.peek() != std::char_traits<char>::eof()) times.push_back(read_fraction(in));
    if (layout == "first") return joined(milnce::slots_as_they_come(times, start, end, frames));
    return joined(milnce::slots(times, end, start, fps, frames, layout == "sliding"));
}

int run(const std::vector<std::string>& arguments) {
    const std::string& task = arguments.at(0);
    if (task == "square") {
        const milnce::Picture picture{std::stoi(arguments.at(1)), std::stoi(arguments.at(2)), [] {
                                          const std::string bytes = read_all();
                                          return std::vector<std::uint8_t>(bytes.begin(), bytes.end());
                                      }()};
        const milnce::Picture made =
            milnce::resize_bilinear(milnce::crop_centre_square(picture), std::stoi(arguments.at(3)));
        write_bytes(made.pixels.data(), made.pixels.size());
    } else if (task == "planar") {
        const std::string bytes = read_all();
        const std::vector<float> planes = milnce::to_planar_float({bytes.begin(), bytes.end()});
        write_bytes(planes.data(), planes.size() * sizeof(float));
    } else if (task == "sha256") {
        std::cout << milnce::sha256(read_all()) << "\n";
    } else if (task == "ids" || task == "words" || task == "starts" || task == "slots") {
        std::vector<std::string> vocabulary{"-"};
        if (task == "ids") {
            std::ifstream file(arguments.at(1), std::ios::binary);
            if (!file) throw std::invalid_argument(arguments.at(1) + " cannot be read");
            vocabulary = milnce::read_vocabulary(file);
        }
        const milnce::Tokenizer tokenizer(vocabulary, task == "ids" ? std::stoul(arguments.at(2)) : 1);
        for (std::string line; std::getline(std::cin, line);) {
            std::istringstream in(line);
            std::cout << (task == "ids"      ? joined(tokenizer(line))
                          : task == "words"  ? joined(milnce::split(line))
                          : task == "starts" ? starts(in)
                                             : slots(in))
                      << "\n";
        }
    } else {
        throw std::invalid_argument("no task " + task + "; the head of milnce_tool.cpp lists them");
    }
    return 0;
}

}  // namespace

int main(int count, char** values) {
    std::ios::sync_with_stdio(false);
    try {
        return run({values + 1, values + count});
    } catch (const std::out_of_range&) {
        std::cerr << "arguments are missing; the head of milnce_tool.cpp lists them\n";
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
    }
    return 1;
}
