// Stands in for libtorch_cuda where torch has none, so that _C_cuda links there. Never loaded: only a torch with
// CUDA loads _C_cuda, and its own library of this name then provides these. Visible, unlike all else that is built:
// what the linker does not find here, it leaves out together with the library's name.
#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {
int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) { return 1; }
int32_t torch_c10_cuda_check_msg(int32_t, const char*, const char*, uint32_t, bool, char**) { return 1; }
void torch_c10_cuda_free_error_msg(char*) {}
}
#pragma GCC visibility pop
