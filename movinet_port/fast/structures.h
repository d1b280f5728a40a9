// The structures of members.h, and a text that says where the compiler has put their members.

#include <cstdint>
#include <string>

namespace movinet_port {
namespace {

struct Nothing {};

#define ACTIVATIONS(...) enum Activation { __VA_ARGS__ };
#define STRUCTURE(name, base) struct name : base {
#define END };
#define MEMBER(kind, name) kind name;
#include "members.h"

// What library.py says of its own structures, of these.
inline std::string layout() {
    std::string text = "HIGHEST_KERNEL: " + std::to_string(HIGHEST_KERNEL);
#define ACTIVATIONS(...) text += "; activations: " #__VA_ARGS__;
#define STRUCTURE(name, base)                 \
    {                                         \
        const std::string structure = #name;  \
        const name all = {};                  \
        text += "; " + structure + ": " + std::to_string(sizeof(all)) + " bytes";
#define MEMBER(kind, name)                                               \
        text += "; " + structure + "." #name ": " #kind " at " +         \
                std::to_string(reinterpret_cast<const char*>(&all.name) - \
                               reinterpret_cast<const char*>(&all));
#define END }
#include "members.h"
    return text;
}

}  // namespace
}  // namespace movinet_port
