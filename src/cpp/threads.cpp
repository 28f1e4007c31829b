// The threads that kernels share, and the memory they work in.
//
// One pool, whose threads sleep between jobs. A caller takes part in its own job, so that a job ends even if no thread
// wakes up; while one caller has the pool, others run alone instead of waiting. A child of fork starts with no pool.
#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace lilliput {
namespace {

thread_local int wanted = 1;

struct Job {
  void (*body)(void*, int64_t, int64_t);
  void* data;
  int64_t n, piece;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(piece);
      if (begin >= n) return;
      const int64_t end = begin + piece < n ? begin + piece : n;
      try {
        body(data, begin, end);
      } catch (...) {  // only memory can be missing
        failed = true;
      }
    }
  }
};

struct Pool {
  std::mutex owner;  // held by the caller whose job is run
  std::mutex mutex;  // guards what follows
  std::condition_variable wake, done;
  Job* job = nullptr;
  int threads = 0, open = 0, active = 0;  // places of the job that are still free, and threads at work

  void loop() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return job != nullptr && open > 0; });
      Job* mine = job;
      --open;
      ++active;
      lock.unlock();
      mine->work();
      lock.lock();
      if (--active == 0) done.notify_all();
    }
  }

  void run(Job& mine, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      for (; threads < helpers; ++threads) {
        try {
          std::thread([this] { loop(); }).detach();
        } catch (...) {  // no more threads to be had: fewer do
          break;
        }
      }
      job = &mine;
      open = helpers < threads ? helpers : threads;
    }
    wake.notify_all();
    mine.work();
    std::unique_lock<std::mutex> lock(mutex);
    job = nullptr;
    open = 0;
    done.wait(lock, [this] { return active == 0; });
  }
};

std::atomic<Pool*> the_pool{nullptr};

Pool* pool() {
  Pool* found = the_pool.load();
  if (found == nullptr) {
#if defined(__unix__) || defined(__APPLE__)
    // The child has none of the threads, and maybe locks that nobody opens: it forgets the pool of its parent.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool = nullptr; });
    (void)registered;
#endif
    Pool* made = new Pool;  // never destroyed: its threads may outlive the module
    if (the_pool.compare_exchange_strong(found, made)) return made;
    delete made;
  }
  return found;
}

struct Memory {
  void* block[8] = {};
  size_t bytes[8] = {};
  ~Memory() {
    for (void* b : block) ::operator delete(b, std::align_val_t{64});
  }
};
thread_local Memory memory;

}  // namespace

void set_threads(int count) { wanted = count < 1 ? 1 : count; }

void parallel_run(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* data) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t most = (n + grain - 1) / grain;
  const int64_t count = wanted < most ? wanted : most;
  if (count > 1) {
    Pool* shared = pool();
    std::unique_lock<std::mutex> mine(shared->owner, std::try_to_lock);
    if (mine.owns_lock()) {
      // Four pieces a thread, so that one that is late doesn't hold up the others by much.
      int64_t piece = (n + count * 4 - 1) / (count * 4);
      if (piece < grain) piece = grain;
      Job job;
      job.body = body;
      job.data = data;
      job.n = n;
      job.piece = piece;
      shared->run(job, static_cast<int>(count - 1));
      if (job.failed) throw std::bad_alloc();
      return;
    }
  }
  body(data, 0, n);
}

void* scratch(int slot, size_t bytes) {
  if (memory.bytes[slot] < bytes) {
    ::operator delete(memory.block[slot], std::align_val_t{64});
    memory.block[slot] = nullptr;
    memory.bytes[slot] = 0;
    memory.block[slot] = ::operator new(bytes, std::align_val_t{64});
    memory.bytes[slot] = bytes;
  }
  return memory.block[slot];
}

}  // namespace lilliput
