// Text arguments of ops.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

namespace faststy {

// The text of an argument, which is the op's to delete. Ops take a StringHandle, not a std::string:
// of what torch makes of that one, some 50 bytes a call are never freed (seen in 2.13).
inline std::string text(StringHandle handle) {
  const char* data = nullptr;
  size_t length = 0;
  STD_TORCH_CHECK(torch_string_c_str(handle, &data) == 0 &&
                      torch_string_length(handle, &length) == 0,
                  "a text cannot be read");
  std::string own(data, length);
  torch_delete_string(handle);
  return own;
}

}  // namespace faststy
