// Cooperative threads: a function with a stack of its own, which runs until it yields.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <functional>

#if defined(__x86_64__)
extern "C" void solid_switch_stack(void** leaving, void* entering);
asm(R"(
.text
solid_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#  include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#  include <sanitizer/asan_interface.h>
#  include <sanitizer/common_interface_defs.h>
#endif

namespace solid_test {

class Fibre {
 public:
  Fibre()
      : stack_(static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (stack_ == MAP_FAILED) std::abort();
  }
  ~Fibre() { munmap(stack_, kStack); }
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // Forgets what it did before, finished or not.
  void start(std::function<void()> body) {
    body_ = std::move(body);
    done_ = false;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStack);
#endif
#if defined(__x86_64__)
    // What solid_switch_stack pops: six registers and where to go; the stack is as after a call.
    void** top = reinterpret_cast<void**>(stack_ + kStack) - 8;
    for (int i = 0; i < 6; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(&Fibre::enter);
    top[7] = nullptr;
    own_ = top;
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_;
    own_.uc_stack.ss_size = kStack;
    makecontext(&own_, &Fibre::enter, 0);
#endif
  }

  // Runs it until it yields or ends; true if it has ended.
  bool resume() {
    running() = this;
#if defined(__SANITIZE_ADDRESS__)
    void* shadow = nullptr;
    __sanitizer_start_switch_fiber(&shadow, stack_, kStack);
#endif
#if defined(__x86_64__)
    solid_switch_stack(&caller_, own_);
#else
    swapcontext(&caller_, &own_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(shadow, nullptr, nullptr);
#endif
    return done_;
  }

  // Called inside: back to whoever resumed it.
  void yield() {
#if defined(__SANITIZE_ADDRESS__)
    void* shadow = nullptr;
    __sanitizer_start_switch_fiber(done_ ? nullptr : &shadow, caller_stack_, caller_size_);
#endif
#if defined(__x86_64__)
    solid_switch_stack(&own_, caller_);
#else
    swapcontext(&own_, &caller_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(shadow, &caller_stack_, &caller_size_);
#endif
  }

 private:
  static constexpr size_t kStack = 256 * 1024;

  static Fibre*& running() {
    static Fibre* fibre = nullptr;
    return fibre;
  }

  static void enter() {
    Fibre* self = running();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_size_);
#endif
    self->body_();
    self->done_ = true;
    self->yield();
    std::abort();
  }

  char* stack_;
  std::function<void()> body_;
  bool done_ = true;
#if defined(__x86_64__)
  void* own_ = nullptr;
  void* caller_ = nullptr;
#else
  ucontext_t own_, caller_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* caller_stack_ = nullptr;
  size_t caller_size_ = 0;
#endif
};

}  // namespace solid_test
