// The fused losses on a CPU: value and gradient in one call, logits read once, gradient written once.
//
// Plain C functions behind ctypes, not a torch extension: one library then serves every torch and every Python.
// (torch's stable ABI needs torch >= 2.9 at run time, where this package accepts 2.6, and torch's headers take
// 40 s to compile; these functions need six pointers and a few numbers.)
//
// The file has two parts. The second, from KERNELS down, is written once over vectors of unnamed width and
// compiled once per instruction set, by this file including itself; the first holds what does not depend on it.
#ifndef KERNELS
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE2__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // undefined registers of the header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors never cross a call that is not inlined

// Weak, so that this library links no OpenMP runtime: a second one in the process would spin against
// torch's. They resolve to the libgomp (or libomp, which has the same entry points) that torch loads globally;
// where there is none, as on macOS, everything runs on the calling thread.
#if defined(__ELF__)
extern "C" void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));
extern "C" int omp_get_thread_num() __attribute__((weak));
extern "C" int omp_get_num_threads() __attribute__((weak));
#endif

namespace {

enum Dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
enum Reduction { NONE, SUM, MEAN };

// The arguments, packed field by field in native.py; both must agree.
struct Call {
    const void *logits, *target, *weight, *pos_weight;
    void *loss, *grad;
    int64_t rows, classes, inner, ignore_index, probabilities;
    int64_t pos_weight_size, sided, dtype, reduction, threads, instructions, strict;
    double eta, gamma_pos, gamma_neg, gamma_hc, label_smoothing, alpha, margin;
};

// A call cut into units that threads share out.
struct Plan {
    const Call* call;
    const void* settings;       // Settings<T>, made once: a piece may be a single row
    double (*work)(const Plan&, int64_t begin, int64_t end, void* scratch);  // returns the summed loss
    int64_t units, pieces, tiles;  // tiles: vectors of rows that one unit holds (column layout)
    size_t scratch_bytes;       // per thread
    int64_t grad_bytes;         // per unit, where they lie together
    char* scratch;
    bool side_by_side;
    double denominator;         // what the mean divides by
    double weight_sum;          // of all classes
    double* partial;
};

struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

// Always the same pieces, whatever the number of threads: sums come out equal to the last bit.
constexpr int64_t PIECES = 1024;
constexpr int64_t GRAIN = 16384;         // elements that are worth a thread
constexpr size_t PAGE = 4096, LINE = 64;  // of memory and of cache, in bytes
constexpr int64_t OWN_MAPPING = 32 << 20; // bytes from which glibc gives every block a separate mapping
constexpr int64_t ACROSS_FROM = 96;      // classes from which a row fills vectors well
constexpr int64_t LONG_ROW = 1 << 16;    // bytes that are not written twice if that can be helped
constexpr int64_t MAX_TILES = 16, BLOCK_BYTES = 1 << 17;
constexpr int64_t SIGMOID_UNIT = 1024;   // elements

// Denormal numbers cost a hundred cycles each and arise from p^2 of improbable classes; here they are 0.
struct FlushDenormals {
#if defined(__SSE2__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

// Memory fresh from the system is mapped page by page at first touch, which costs more than computing what goes there;
// asking for a stretch at once saves about half. (Large pages would save more, but on a machine with fragmented memory
// the system stops to compact it, which was measured to cost ten times the whole loss.)
void map_pages(char* begin, char* end) {
#if defined(__linux__)
    const uintptr_t last = (uintptr_t)end / PAGE * PAGE, first = ((uintptr_t)begin + PAGE - 1) / PAGE * PAGE;
    const int populate_write = 23;  // MADV_POPULATE_WRITE, Linux 5.14; an error elsewhere, which does not matter
    unsigned char mapped = 1;
    if (first < last && mincore((void*)(last - PAGE), PAGE, &mapped) == 0 && !(mapped & 1))
        madvise((void*)first, last - first, populate_write);
#else
    (void)begin, (void)end;
#endif
}

void run_share(Plan& plan, int64_t thread, int64_t threads) {
    FlushDenormals flush;
    void* scratch = plan.scratch + thread * plan.scratch_bytes;
    const bool map = plan.grad_bytes * plan.units >= OWN_MAPPING;
    for (int64_t i = plan.pieces * thread / threads; i < plan.pieces * (thread + 1) / threads; ++i) {
        const int64_t begin = plan.units * i / plan.pieces, end = plan.units * (i + 1) / plan.pieces;
        char* grad = (char*)plan.call->grad;
        if (map) map_pages(grad + begin * plan.grad_bytes, grad + end * plan.grad_bytes);
        plan.partial[i] = plan.work(plan, begin, end, scratch);
    }
}

#if defined(__ELF__)
void run_thread(void* plan) { run_share(*(Plan*)plan, omp_get_thread_num(), omp_get_num_threads()); }
#endif

bool run(Plan& plan, double& total) {
    const Call& call = *plan.call;
    int64_t elements = call.rows * call.classes * call.inner, threads = elements / GRAIN;
    threads = threads < call.threads ? threads : call.threads;
    threads = threads < plan.units ? threads : plan.units;
    threads = threads < 1 ? 1 : threads;
#if defined(__ELF__)
    if (!GOMP_parallel || !omp_get_thread_num || !omp_get_num_threads) threads = 1;
#else
    threads = 1;
#endif
    double partial[PIECES];
    plan.partial = partial;
    plan.pieces = plan.units < PIECES ? plan.units : PIECES;
    plan.scratch_bytes = (plan.scratch_bytes + LINE - 1) / LINE * LINE;
    char* memory = (char*)malloc(plan.scratch_bytes * threads + LINE);
    if (!memory) return false;
    plan.scratch = memory + LINE - (uintptr_t)memory % LINE;
#if defined(__ELF__)
    if (threads > 1) GOMP_parallel(run_thread, &plan, (unsigned)threads, 0);
    else
#endif
        run_share(plan, 0, 1);
    free(memory);
    total = 0;
    for (int64_t i = 0; i < plan.pieces; ++i) total += partial[i];
    return true;
}

// True if a loop that reads along `from` and writes along `to` waits for itself: processors compare a load with earlier
// stores by the address within a page first, and hold the load back where those agree.
bool collides(const void* from, const void* to) {
    const uintptr_t ahead = ((uintptr_t)to - (uintptr_t)from) % PAGE;
    return ahead && ahead < PAGE / 8;
}

// The first line from `scratch` on that collides neither with `to` nor with what `to` collides with.
void* apart(void* scratch, const void* to) {
    return (char*)scratch + ((uintptr_t)to + PAGE / 4 - (uintptr_t)scratch) % PAGE / LINE * LINE;
}

bool in_range(int64_t t, int64_t classes) { return t >= 0 && t < classes; }

// True if an index is neither a class nor ignored.
bool any_wrong(const Call& call) {
    const int64_t *target = (const int64_t*)call.target, count = call.rows * call.inner;
    bool wrong = false;
    for (int64_t i = 0; i < count; ++i)
        wrong |= ((uint64_t)target[i] >= (uint64_t)call.classes) & (target[i] != call.ignore_index);
    return wrong;
}

// The weights of the targets that count, or their number; an index out of range has no weight to add.
template <class T> double index_denominator(const Call& call) {
    const int64_t *target = (const int64_t*)call.target, count = call.rows * call.inner;
    const T* weight = (const T*)call.weight;
    int64_t counted = 0;
    if (!weight) {
        for (int64_t i = 0; i < count; ++i) counted += target[i] != call.ignore_index;
        return (double)counted;
    }
    double sum = 0;
    for (int64_t i = 0; i < count; ++i)
        if (target[i] != call.ignore_index && in_range(target[i], call.classes)) sum += weight[target[i]];
    return sum;
}

}  // namespace

#define KERNELS

#define ISA baseline
#define TARGET
#define BYTES 16
#include "native.cpp"
#if defined(__x86_64__)
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define BYTES 32
#include "native.cpp"
#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#define BYTES 64
#include "native.cpp"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// The widest set of instructions of this machine, as an index: 0 baseline, 1 AVX2, 2 AVX-512.
EXPORT int cyclofocal_instructions() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// 0; 1 when there is no memory; 2 when a target is out of range and the call strict, before anything is computed.
EXPORT int cyclofocal_softmax(const Call* call) {
    if (call->strict && !call->probabilities && any_wrong(*call)) return 2;
#if defined(__x86_64__)
    if (call->instructions == 2) return avx512::softmax(*call);
    if (call->instructions == 1) return avx2::softmax(*call);
#endif
    return baseline::softmax(*call);
}

EXPORT int cyclofocal_sigmoid(const Call* call) {
#if defined(__x86_64__)
    if (call->instructions == 2) return avx512::sigmoid(*call);
    if (call->instructions == 1) return avx2::sigmoid(*call);
#endif
    return baseline::sigmoid(*call);
}

#else  // ---------------------------------------------------------------- KERNELS, once per instruction set
#define FN TARGET static inline __attribute__((always_inline))
#define KERNEL TARGET static __attribute__((noinline))

namespace {
namespace ISA {

template <class F, class U> FN F bits_as(U u) {
    F f;
    memcpy(&f, &u, sizeof f);
    return f;
}

template <class T> struct Real;
template <> struct Real<float> {
    typedef int32_t Int;
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    typedef uint32_t U __attribute__((vector_size(BYTES)));
    typedef uint16_t Half __attribute__((vector_size(BYTES / 2)));
    static constexpr int MANTISSA = 23, BIAS = 127, LOG_TERMS = 5, EXPM1_TERMS = 8;
    static constexpr float BIG = 1e30f, MAGIC = 0x1.8p23f, SQRT_HALF = 0x1.6a09e6p-1f;
    static constexpr float EXP_LOW = -88.0f, EXP_HIGH = 88.9f;
#if BYTES == 16  // without fused multiply-add n * LN2_HI must be exact
    static constexpr float LN2_HI = 0x1.62e4p-1f, LN2_LO = 0x1.7f7d1cp-20f;
#else
    static constexpr float LN2_HI = 0x1.62e43p-1f, LN2_LO = -0x1.05c61p-29f;
#endif
    static constexpr bool LOW_PART = BYTES == 16;  // whether LN2_LO matters to exp; n * LN2_LO is at most 2.4e-7
    static constexpr double LOG_LIMIT = 78;  // of sums of powers, well inside the range
};
template <> struct Real<double> {
    typedef int64_t Int;
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    typedef uint64_t U __attribute__((vector_size(BYTES)));
    static constexpr int MANTISSA = 52, BIAS = 1023, LOG_TERMS = 11, EXPM1_TERMS = 15;
    static constexpr double BIG = 1e290, MAGIC = 0x1.8p52, SQRT_HALF = 0x1.6a09e667f3bcdp-1;
    static constexpr double EXP_LOW = -709.2, EXP_HIGH = 710, LN2_HI = 0x1.62e42fee00000p-1;
    static constexpr double LN2_LO = 0x1.a39ef35793c76p-33, LOG_LIMIT = 600;
    static constexpr bool LOW_PART = true;
};

// The greater and the lesser of each lane, b where either is nan: the general form is one instruction but
// in AVX-512.
#if BYTES == 64
FN Real<float>::V max(Real<float>::V a, Real<float>::V b) { return _mm512_max_ps(a, b); }
FN Real<float>::V min(Real<float>::V a, Real<float>::V b) { return _mm512_min_ps(a, b); }
FN Real<double>::V max(Real<double>::V a, Real<double>::V b) { return _mm512_max_pd(a, b); }
FN Real<double>::V min(Real<double>::V a, Real<double>::V b) { return _mm512_min_pd(a, b); }
FN Real<float>::V scaled(Real<float>::V r, Real<float>::V n) { return _mm512_scalef_ps(r, n); }
FN Real<double>::V scaled(Real<double>::V r, Real<double>::V n) { return _mm512_scalef_pd(r, n); }
#else
template <class V> FN V max(V a, V b) { return a > b ? a : b; }
template <class V> FN V min(V a, V b) { return a < b ? a : b; }
#endif

// base^value for base >= 0; whole numbers up to 4 by multiplication.
template <class T> struct Exponent {
    T value;
    int whole;  // 0 to 4, otherwise -1
    explicit Exponent(double g) : value((T)g), whole(g <= 4 && g == (int)g ? (int)g : -1) {}
};

template <class T> struct Math : Real<T> {
    typedef Real<T> R;
    typedef typename R::V V;
    typedef typename R::I I;
    typedef typename R::U U;
    typedef typename R::Int Int;
    static constexpr int W = BYTES / sizeof(T);

    FN V load(const T* p) { V v; memcpy(&v, p, sizeof v); return v; }
    FN void store(T* p, V v) { memcpy(p, &v, sizeof v); }
    FN V all(T a) { return a - V{}; }
    FN V clamp(V a) { return max(all(-R::BIG), a); }  // so that 0 * log 0 is 0
    FN I lanes() { I i = {}; for (int k = 0; k < W; ++k) i[k] = k; return i; }

    FN V across(V v, int distance) {  // every lane gets the one that is so far away
#if defined(__clang__)
        V moved;
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) moved[k] = v[k ^ distance];
        return moved;
#else
        return __builtin_shuffle(v, lanes() ^ (Int)distance);
#endif
    }
    FN V sum(V v) {  // in every lane
#pragma GCC unroll 4
        for (int half = W / 2; half; half /= 2) v += across(v, half);
        return v;
    }
    FN V highest(V v) {
#pragma GCC unroll 4
        for (int half = W / 2; half; half /= 2) v = max(across(v, half), v);
        return v;
    }

    // 2^n * e^f with |f| <= log(2)/2; exactly 0 at -inf, inf beyond the range.
    FN V exp(V x) {
        x = max(all(R::EXP_LOW), x);
#if BYTES == 64
        if constexpr (sizeof(T) == 4) return exp_by_table(x);
#else
        x = min(all(R::EXP_HIGH), x);
#endif
        V shifted = x * (T)1.4426950408889634 + R::MAGIC, n = shifted - R::MAGIC, f = x - n * R::LN2_HI;
        if (R::LOW_PART) f -= n * R::LN2_LO;
#if BYTES == 64
        return scaled(polynomial(f), n);
#else
        return polynomial(f) * bits_as<V>((bits_as<U>(shifted) + R::BIAS) << R::MANTISSA);
#endif
    }
#if BYTES == 64
    // 2^(n + k/32) * e^f with |f| <= log(2)/64, where a parabola (relative error 5e-8) suffices: three multiplications
    // less, of which there would be eleven in the first pass over the logits, and it waits for them.
    FN V exp_by_table(V x) {
        const V low = {0x1.000000p0f, 0x1.059b0ep0f, 0x1.0b5586p0f, 0x1.11301ep0f, 0x1.172b84p0f, 0x1.1d4874p0f,
                       0x1.2387a6p0f, 0x1.29e9e0p0f, 0x1.306fe0p0f, 0x1.371a74p0f, 0x1.3dea64p0f, 0x1.44e086p0f,
                       0x1.4bfdaep0f, 0x1.5342b6p0f, 0x1.5ab07ep0f, 0x1.6247ecp0f};
        const V high = {0x1.6a09e6p0f, 0x1.71f75ep0f, 0x1.7a1148p0f, 0x1.82589ap0f, 0x1.8ace54p0f, 0x1.93737cp0f,
                        0x1.9c4918p0f, 0x1.a5503cp0f, 0x1.ae89fap0f, 0x1.b7f770p0f, 0x1.c199bep0f, 0x1.cb720ep0f,
                        0x1.d5818ep0f, 0x1.dfc974p0f, 0x1.ea4afap0f, 0x1.f50766p0f};
        V shifted = x * (T)1.4426950408889634 + (T)0x1.8p18, n = shifted - (T)0x1.8p18, f = x - n * R::LN2_HI;
        V power = _mm512_permutex2var_ps(low, bits_as<__m512i>(shifted), high);
        return scaled(power * ((f * (T)0.5 + (T)0x1.0000f6p0) * f) + power, n);
    }
#endif
    // Minimax of degree 6 (relative error 3e-9) for float, Taylor of degree 13 (4e-18) for double.
    FN V polynomial(V f) {
        if (sizeof(T) == 8) return taylor<13>(f, 1);
        V r = f * (T)0x1.6a7582p-10 + (T)0x1.1238d0p-7;
        r = r * f + (T)0x1.555884p-5;
        r = r * f + (T)0x1.555494p-3;
        r = r * f + (T)0x1.fffffcp-2;
        r = r * f + (T)1.0;
        return r * f + (T)1;
    }
    // The sum of f^k * (first - 1)! / (first - 1 + k)! for k = 0 to TERMS.
    template <int TERMS> FN V taylor(V f, int first) {
        V r = all(1);
#pragma GCC unroll 16
        for (int k = TERMS; k > 0; --k) r = r * f * (T)(1.0 / (k + first - 1)) + (T)1;
        return r;
    }

    FN V expm1(V x) {  // for x <= 0
        return x > (T)-0.35 ? x * taylor<R::EXPM1_TERMS>(x, 2) : exp(x) - (T)1;
    }

    // log(2^k m) = k log 2 + 2 artanh((m - 1) / (m + 1)), sqrt(1/2) <= m < sqrt(2)
    FN V log(V x) {
        const U half = bits_as<U>(all(R::SQRT_HALF));
        I k = (I)(bits_as<U>(x) - half) >> R::MANTISSA;
        V m = bits_as<V>(bits_as<U>(x) - ((U)k << R::MANTISSA)), n = __builtin_convertvector(k, V);
        V s = (m - (T)1) / (m + (T)1), s2 = s * s, r = all((T)2 / (2 * R::LOG_TERMS - 1));
#pragma GCC unroll 16
        for (int i = R::LOG_TERMS - 2; i >= 0; --i) r = r * s2 + (T)2 / (2 * i + 1);
        r = n * R::LN2_HI + (s * r + n * R::LN2_LO);
        r = x == 0 ? all(-INFINITY) : r;
        return (((x > 0) & (x < (T)INFINITY)) | (x == 0)) ? r : x + x;  // inf and nan
    }
    FN V log1p(V x) {  // the rounding of 1 + x cancels
        V u = x + (T)1, d = u - (T)1;
        return d == 0 ? x : u == (T)INFINITY ? u : log(u) * (x / (d == 0 ? all(1) : d));
    }

    struct Power { V value, slope; };  // base^g and its derivative by base, which is 0 at 0 even for g < 1
    FN Power power(V base, Exponent<T> g) {
        V square = base * base;
        switch (g.whole) {
            case 0: return {all(1), V{}};
            case 1: return {base, all(1)};
            case 2: return {square, base * (T)2};
            case 3: return {square * base, square * (T)3};
            case 4: return {square * square, square * base * (T)4};
        }
        V value = exp(g.value * clamp(log(base)));
        return {base == 0 ? V{} : value, base == 0 ? V{} : g.value * value / base};
    }
    FN V power_of_exp(V base, V logarithm, Exponent<T> g) {  // the same value where the logarithm is known
        return g.whole < 0 ? exp(g.value * logarithm) : power(base, g).value;
    }
};

// Half precision as integer arithmetic, on one number or a vector (U unsigned, F float, of the same lanes).
FN float widen(float x) { return x; }
FN double widen(double x) { return x; }
FN float widen(Bfloat16 h) { return bits_as<float>((uint32_t)h.bits << 16); }
template <class F, class U> FN F widen_half(U h) {
    U magnitude = (h & 0x7fff) << 13, sign = (h & 0x8000) << 16;
    F normal = bits_as<F>(magnitude + ((127 - 15) << 23));
    F denormal = bits_as<F>(magnitude + ((128 - 15) << 23)) - 0x1p-14f;
    F special = bits_as<F>(magnitude + ((255 - 31) << 23));
    F f = (h & 0x7c00) == 0 ? denormal : (h & 0x7c00) == 0x7c00 ? special : normal;
    return bits_as<F>(bits_as<U>(f) | sign);
}
template <class F, class U> FN U narrow_bfloat16(F f) {  // to the nearest, ties to even
    U u = bits_as<U>(f);
    return f != f ? (u & 0) + 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
template <class F, class U> FN U narrow_half(F f) {
    U u = bits_as<U>(f), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    F absolute = bits_as<F>(magnitude);
    U denormal = bits_as<U>(absolute + 0.5f) - 0x3f000000;  // the addition rounds
    U normal = (magnitude - ((127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    U h = absolute < 0x1p-14f ? denormal : absolute < 65520.0f ? normal : (u & 0) + 0x7c00;
    return sign | (f != f ? (u & 0) + 0x7e00 : h);
}
FN float widen(Float16 h) { return widen_half<float, uint32_t>(h.bits); }
FN void narrow(float x, float* p) { *p = x; }
FN void narrow(double x, double* p) { *p = x; }
FN void narrow(float x, Bfloat16* p) { p->bits = (uint16_t)narrow_bfloat16<float, uint32_t>(x); }
FN void narrow(float x, Float16* p) { p->bits = (uint16_t)narrow_half<float, uint32_t>(x); }

typedef Math<float> MF;
FN MF::V load(const float* p) { return MF::load(p); }
FN Math<double>::V load(const double* p) { return Math<double>::load(p); }
FN MF::U load_bits(const void* p) { MF::Half h; memcpy(&h, p, sizeof h); return __builtin_convertvector(h, MF::U); }
FN MF::V load(const Bfloat16* p) { return bits_as<MF::V>(load_bits(p) << 16); }
FN MF::V load(const Float16* p) { return widen_half<MF::V, MF::U>(load_bits(p)); }
FN void store(float* p, MF::V v) { MF::store(p, v); }
FN void store(double* p, Math<double>::V v) { Math<double>::store(p, v); }
FN void store_bits(void* p, MF::U u) { MF::Half h = __builtin_convertvector(u, MF::Half); memcpy(p, &h, sizeof h); }
FN void store(Bfloat16* p, MF::V v) { store_bits(p, narrow_bfloat16<MF::V, MF::U>(v)); }
FN void store(Float16* p, MF::V v) { store_bits(p, narrow_half<MF::V, MF::U>(v)); }
template <class T, class IO> FN typename Math<T>::V load_some(const IO* p, int64_t count, IO fill) {
    IO lanes[Math<T>::W];
    for (int k = 0; k < Math<T>::W; ++k) lanes[k] = k < count ? p[k] : fill;
    return load(lanes);
}
template <class T, class IO> FN void store_some(IO* p, typename Math<T>::V v, int64_t count) {
    IO lanes[Math<T>::W];
    store(lanes, v);
    for (int k = 0; k < count; ++k) p[k] = lanes[k];
}

template <class T> struct Settings {
    T own, other;               // what smoothing leaves to the true class and gives to every class
    T eta, focal, flat;         // weight of another class: focal * p^gamma_neg + flat
    Exponent<T> pos, neg, hc;
    T reach, limit;             // of an exponent, and of a sum of exponentials, whose powers are still finite
    explicit Settings(const Call& c)
        : own((T)(1 - c.label_smoothing + c.label_smoothing / c.classes)),
          other((T)(c.label_smoothing / c.classes)), eta((T)c.eta),
          focal((T)(c.gamma_neg == 0 ? 0 : 1 - c.eta)), flat((T)(c.gamma_neg == 0 ? 1 : c.eta)),
          pos(c.gamma_pos), neg(c.gamma_neg), hc(c.gamma_hc) {
        double power = Real<T>::LOG_LIMIT / (c.gamma_neg > 1 ? c.gamma_neg : 1);
        reach = (T)(power < 34 ? power : 34);
        limit = (T)::exp(reach);
    }
};

// Weight of the true side times log p, and its derivative by log p; q = 1 - p.
template <class T> struct OwnTerm { typename Math<T>::V value, slope; };
template <class T>
FN OwnTerm<T> own_term(const Settings<T>& s, typename Math<T>::V l, typename Math<T>::V p, typename Math<T>::V q) {
    typedef Math<T> M;
    auto hard = M::power(q, s.pos), easy = M::power(p + (T)1, s.hc);
    auto weight = hard.value + s.eta * (easy.value - hard.value);
    auto slope = p * (s.eta * easy.slope - (1 - s.eta) * hard.slope);
    return {weight * l, weight + M::clamp(l) * slope};
}

// A row to compute, or W rows side by side. ACROSS: lanes are classes of one row, in `full` vectors and a last one
// for the `rest`, which ends with the row and so overlaps the one before; otherwise lanes are rows and vectors classes.
template <class T> struct Rows {
    typedef typename Math<T>::V V;
    const T *x, *y, *weight;           // logits; target probabilities; class weights or null
    int64_t full, rest;
    V other_weight, own_weight, scale, own_x;  // weights of all other classes, and of the target; 1/denominator
    typename Math<T>::I target;
    T *e, *h, *g;                      // scratch of the logits' size, the same, the gradient or null; g may be x
};

// The start of vector j, and a mask of its lanes that are in no vector before it.
template <class T> FN int64_t begin_of(const Rows<T>& r, int64_t j) {
    return j * Math<T>::W - (j < r.full ? 0 : Math<T>::W - r.rest);
}
template <class T> FN typename Math<T>::I fresh(const Rows<T>& r, int64_t j) {
    typedef Math<T> M;
    return M::lanes() >= (typename M::Int)(j < r.full ? 0 : M::W - r.rest);
}

constexpr int64_t BLOCK = 256;  // vectors summed into one accumulator
constexpr int64_t AHEAD = 48;  // vectors fetched in advance
constexpr int64_t GLANCE = 16;  // vectors whose maximum is tried as the reference of the exponentials

template <class T, bool ACROSS> FN typename Math<T>::V over_lanes(typename Math<T>::V v) {
    return ACROSS ? Math<T>::sum(v) : v;
}

template <class T, bool ACROSS> FN typename Math<T>::V reference(const Rows<T>& r, int64_t count) {
    typedef Math<T> M;
    typename M::V top = r.full ? M::load(r.x) : M::all(-INFINITY);
    for (int64_t j = 1; j < count; ++j) top = max(M::load(r.x + j * M::W), top);
    if (ACROSS && r.rest) top = max(M::load(r.x + begin_of(r, r.full)), top);
    return ACROSS ? M::highest(top) : top;
}

// Sums over the classes but the true one: e^x, w p^g, w p^g x and w x, where p still lacks its divisor.
enum Others { ABSENT, SQUARE, ANY };  // no label smoothing; gamma_neg 2 and no class weights; any of both
template <class T, int OTHERS> struct Sums {
    typedef Math<T> M;
    typedef typename M::V V;
    V z, a, b, d;
    template <bool MASKED>
    FN void add(Sums& u, const Settings<T>& s, V x, V e, V w, typename M::I keep) {
        u.z += MASKED ? (keep ? e : V{}) : e;
        if (OTHERS == ABSENT) return;
        V c = OTHERS == SQUARE ? max(M::all(M::EXP_LOW), x) : M::clamp(x);  // the same to e^x, which already has it
        V a = OTHERS == SQUARE ? e * e : M::power_of_exp(e, c, s.neg);
        a = OTHERS == ANY ? a * w : a;
        x = OTHERS == ANY ? x * w : x;
        a = MASKED ? (keep ? a : V{}) : a;
        u.a += a;
        u.b += a * c;
        u.d += MASKED ? (keep ? x : V{}) : x;
    }
    template <bool ACROSS> FN void fold(Sums& total, const Sums& u) {
        total.z += over_lanes<T, ACROSS>(u.z);
        if (OTHERS == ABSENT) return;
        total.a += over_lanes<T, ACROSS>(u.a);
        total.b += over_lanes<T, ACROSS>(u.b);
        total.d += over_lanes<T, ACROSS>(u.d);
    }
};

// The loss of a row and what its gradient needs: h of the true class is folded into `sum` and `own`.
template <class T> struct Finished { typename Math<T>::V loss, sum, inverse, log_z, own, focal, flat, twice; };

template <class T, int OTHERS>
FN Finished<T> finish(const Settings<T>& s, const Rows<T>& r, const Sums<T, OTHERS>& u,
                      typename Math<T>::V x) {
    typedef Math<T> M;
    typedef typename M::V V;
    V e = M::exp(x), z = u.z + e, log_z = M::log(z), inverse = (T)1 / z, p = e * inverse, q = u.z * inverse;
    V l = x > (T)-40 ? -M::log1p(u.z / e) : x - log_z;  // no cancellation as p goes to 1
    auto own = own_term(s, l, p, q);
    V factor = r.own_weight * -s.own, slope = r.scale * factor * own.slope;
    Finished<T> f = {factor * own.value, slope, inverse, log_z, q * slope, V{}, V{}, V{}};
    if (OTHERS == ABSENT) return f;
    V divisor = M::power_of_exp(inverse, -log_z, s.neg), focal = divisor * u.a;
    V focal_log = divisor * u.b - log_z * focal, flat_log = u.d - log_z * r.other_weight;
    f.loss -= s.other * (s.focal * focal_log + (s.flat == 0 ? V{} : s.flat * flat_log));
    f.focal = r.scale * (-s.other * s.focal);
    f.flat = r.scale * (-s.other * s.flat);
    f.twice = f.focal * (T)2 * inverse;
    V others = f.focal * (focal + s.neg.value * focal_log) + f.flat * r.other_weight;
    f.sum += others;
    f.own -= p * others;  // (1 - p) h_t - p sum of h_j: no cancellation either
    return f;
}

template <class T, int OTHERS>
FN typename Math<T>::V other_gradient(const Settings<T>& s, const Finished<T>& f, typename Math<T>::V x,
                                      typename Math<T>::V e, typename Math<T>::V w) {
    typedef Math<T> M;
    auto p = e * f.inverse;
    if (OTHERS == ABSENT) return -(p * f.sum);
    auto l = M::clamp(x - f.log_z);
    if (OTHERS == SQUARE) return p * (e * f.twice * (l + (T)0.5) - f.sum) + f.flat;
    auto h = f.focal * M::power_of_exp(p, l, s.neg) * (s.neg.value * l + (T)1) + f.flat;
    return h * w - p * f.sum;
}

// Which lanes of vector j are not the true class.
template <class T, bool ACROSS> FN typename Math<T>::I is_other(const Rows<T>& r, int64_t j) {
    typedef Math<T> M;
    typedef typename M::Int Int;
    return ACROSS ? M::lanes() + (Int)begin_of(r, j) != r.target : r.target != (Int)j;
}

// Class weights of vector j.
template <class T, bool ACROSS, int OTHERS> FN typename Math<T>::V class_weight(const Rows<T>& r, int64_t j) {
    typedef Math<T> M;
    if (OTHERS != ANY || !r.weight) return M::all(1);
    return ACROSS ? M::load(r.weight + begin_of(r, j)) : M::all(r.weight[j]);
}

// Rows with a class index each: the losses, and the gradient but for the true class, which is returned.
template <class T, bool ACROSS, int OTHERS>
KERNEL void index_rows(const Settings<T>& s, const Rows<T>& row, typename Math<T>::V& loss,
                       typename Math<T>::V& own_gradient) {
    const Rows<T> r = row;  // a copy, which no store can change, so that registers hold it
    typedef Math<T> M;
    typedef typename M::V V;
    typedef typename M::I I;
    typedef Sums<T, OTHERS> S;
    constexpr int64_t W = M::W;
    const int64_t hot = r.target[0] / W;
    // The exponentials are taken relative to the maximum of the first classes, which saves a pass over the row;
    // should they grow too large, that pass is made and the row begun again.
    int64_t look = ACROSS && r.full > GLANCE ? GLANCE : r.full;
    V top, e_last = {};
    S total;
    for (;; look = r.full) {
        top = reference<T, ACROSS>(r, look);
        total = S();
        for (int64_t j = 0; j < r.full;) {
            S part = S();
            for (int64_t stop = j + BLOCK < r.full ? j + BLOCK : r.full; j < stop; ++j) {
                V x = M::load(r.x + j * W) - top, e = M::exp(x), w = class_weight<T, ACROSS, OTHERS>(r, j);
                M::store(r.e + j * W, e);
                if (ACROSS) __builtin_prefetch(r.x + (j + AHEAD) * W, 0, 2);  // may point past the end
                if (ACROSS && r.g) __builtin_prefetch(r.g + (j + AHEAD) * W, 1, 2);
                if (ACROSS && j != hot) S::template add<false>(part, s, x, e, w, I{});
                else S::template add<true>(part, s, x, e, w, is_other<T, ACROSS>(r, j));
            }
            if (ACROSS && r.rest && j == r.full) {
                V x = M::load(r.x + begin_of(r, j)) - top, w = class_weight<T, ACROSS, OTHERS>(r, j);
                e_last = M::exp(x);
                S::template add<true>(part, s, x, e_last, w, fresh(r, j) & is_other<T, ACROSS>(r, j));
            }
            S::template fold<ACROSS>(total, part);
        }
        if (look == r.full || (total.z[0] <= s.limit && r.own_x[0] - top[0] <= s.reach)) break;
    }
    auto f = finish(s, r, total, r.own_x - top);
    loss = f.loss;
    own_gradient = f.own;
    if (!r.g) return;
    const bool backwards = ACROSS && collides(r.x, r.g);
    for (int64_t i = 0; i < r.full; ++i) {
        const int64_t j = backwards ? r.full - 1 - i : i;
        V x = M::load(r.x + j * W) - top, w = class_weight<T, ACROSS, OTHERS>(r, j);
        M::store(r.g + j * W, other_gradient<T, OTHERS>(s, f, x, M::load(r.e + j * W), w));
    }
    if (ACROSS && r.rest) {
        V x = M::load(r.x + begin_of(r, r.full)) - top, w = class_weight<T, ACROSS, OTHERS>(r, r.full);
        M::store(r.g + begin_of(r, r.full), other_gradient<T, OTHERS>(s, f, x, e_last, w));
    }
}

// One class of a row with a distribution as target: its part of the loss, and h.
template <class T> struct Class { typename Math<T>::V loss, h; };
template <class T>
FN Class<T> soft_class(const Settings<T>& s, typename Math<T>::V l, typename Math<T>::V p, typename Math<T>::V y) {
    typedef Math<T> M;
    typedef typename M::V V;
    l = l > 0 ? V{} : l;  // by rounding
    V c = M::clamp(l), is = y * s.own, is_not = (1 - y) * s.other;
    auto own = own_term(s, l, p, -M::expm1(c));
    Class<T> k = {is == 0 ? V{} : is * own.value, is * own.slope};
    if (s.other == 0) return k;
    V focal = s.focal * M::power_of_exp(p, c, s.neg);
    V value = focal * c + (s.flat == 0 ? V{} : s.flat * l);
    k.loss += is_not == 0 ? V{} : is_not * value;
    k.h += is_not * (focal * (s.neg.value * c + (T)1) + s.flat);
    return k;
}

// Rows with a distribution over the classes each.
template <class T, bool ACROSS>
KERNEL void soft_rows(const Settings<T>& s, const Rows<T>& r, typename Math<T>::V& loss, typename Math<T>::V&) {
    typedef Math<T> M;
    typedef typename M::V V;
    constexpr int64_t W = M::W;
    const int64_t vectors = r.full + (ACROSS && r.rest);
    V top = reference<T, ACROSS>(r, r.full), z = {}, sum = {}, part = {};
    for (int64_t j = 0; j < vectors; ++j) {
        V e = M::exp(M::load(r.x + begin_of(r, j)) - top);
        M::store(r.e + j * W, e);
        part += fresh(r, j) ? e : V{};
        if (j % BLOCK == BLOCK - 1) z += part, part = V{};
    }
    z = over_lanes<T, ACROSS>(z + part);
    V log_z = M::log(z), inverse = (T)1 / z;
    V part_loss = loss = part = V{};
    for (int64_t j = 0; j < vectors; ++j) {
        V x = M::load(r.x + begin_of(r, j)), y = M::load(r.y + begin_of(r, j));
        auto k = soft_class(s, x - top - log_z, M::load(r.e + j * W) * inverse, y);
        if (r.weight) {
            V w = class_weight<T, ACROSS, ANY>(r, j);
            k.loss *= w;
            k.h *= w;
        }
        M::store(r.h + j * W, k.h);
        part_loss -= fresh(r, j) ? k.loss : V{};
        part += fresh(r, j) ? k.h : V{};
        if (j % BLOCK == BLOCK - 1) sum += part, loss += part_loss, part = part_loss = V{};
    }
    loss = over_lanes<T, ACROSS>(loss + part_loss);
    sum = over_lanes<T, ACROSS>(sum + part);
    for (int64_t j = 0; r.g && j < vectors; ++j) {
        V g = r.scale * (M::load(r.e + j * W) * inverse * sum - M::load(r.h + j * W));
        M::store(r.g + begin_of(r, j), g);
    }
}

template <class T> struct Kernel {
    typedef void (*Function)(const Settings<T>&, const Rows<T>&, typename Math<T>::V&, typename Math<T>::V&);
    template <bool ACROSS> TARGET static Function choose(const Call& c) {
        if (c.probabilities) return soft_rows<T, ACROSS>;
        if (c.label_smoothing == 0) return index_rows<T, ACROSS, ABSENT>;
        return c.gamma_neg == 2 && !c.weight ? index_rows<T, ACROSS, SQUARE> : index_rows<T, ACROSS, ANY>;
    }
};

// Resolve a target index: the first class and a weight of nan, so a row of nan, if it is out of range.
template <class T> struct Target {
    int64_t index;
    T own_weight, other_weight;
    Target(const Rows<T>& r, const Plan& plan, int64_t t) {
        const bool valid = in_range(t, plan.call->classes);
        index = valid ? t : 0;
        const T weight = r.weight ? r.weight[index] : 1;
        own_weight = valid ? weight : (T)NAN;
        other_weight = (T)(plan.weight_sum - weight);
    }
};

template <class T> TARGET static Rows<T> common(const Plan& plan) {
    Rows<T> r;
    r.weight = (const T*)plan.call->weight;
    r.scale = Math<T>::all((T)(plan.call->reduction == MEAN ? 1 / plan.denominator : 1));
    r.target = typename Math<T>::I{};
    r.own_weight = r.own_x = typename Math<T>::V{};
    r.other_weight = Math<T>::all((T)(plan.weight_sum - 1));
    return r;
}

template <class IO> struct Compute { typedef float T; };
template <> struct Compute<double> { typedef double T; };
template <class T> void put_loss(const Call& c, int64_t row, T loss) {
    if (c.reduction == NONE) ((T*)c.loss)[row] = loss;
}

// Units are rows with many classes each: lanes run across the classes.
template <class IO> TARGET static double across_work(const Plan& plan, int64_t begin, int64_t end, void* scratch) {
    typedef typename Compute<IO>::T T;
    typedef Math<T> M;
    constexpr bool DIRECT = sizeof(IO) == sizeof(T);
    const Call& c = *plan.call;
    const int64_t classes = c.classes, padded = (classes / M::W + 1) * M::W;
    const Settings<T> settings = *(const Settings<T>*)plan.settings;
    const auto kernel = Kernel<T>::template choose<true>(c);
    Rows<T> r = common<T>(plan);
    r.full = classes / M::W, r.rest = classes % M::W;
    r.e = (T*)scratch, r.h = r.e + padded;
    T *wide_x = r.h + padded, *wide_g = wide_x + padded;
    double total = 0;
    for (int64_t n = begin; n < end; ++n) {
        const IO* x = (const IO*)c.logits + n * classes;
        IO* g = c.grad ? (IO*)c.grad + n * classes : nullptr;
        int64_t t = c.probabilities ? 0 : ((const int64_t*)c.target)[n];
        if (!c.probabilities && t == c.ignore_index) {
            if (g) memset((void*)g, 0, classes * sizeof(IO));
            put_loss<T>(c, n, 0);
            continue;
        }
        if (!DIRECT) {
            for (int64_t j = 0; j < r.full; ++j) M::store(wide_x + j * M::W, load(x + j * M::W));
            for (int64_t j = r.full * M::W; j < classes; ++j) wide_x[j] = widen(x[j]);
        }
        r.x = DIRECT ? (const T*)x : wide_x;
        r.g = !g ? nullptr : DIRECT ? (T*)g : wide_g;
        if (DIRECT && g && !c.probabilities)  // half the traffic, unless it is in its own way
            r.e = collides(r.x, r.g) && classes * (int64_t)sizeof(T) < LONG_ROW ? (T*)apart(scratch, r.g) : r.g;
        if (c.probabilities) {
            r.y = (const T*)c.target + n * classes;
        } else {
            const Target<T> target(r, plan, t);
            t = target.index;
            r.target = (typename M::Int)t - typename M::I{};
            r.own_weight = M::all(target.own_weight), r.other_weight = M::all(target.other_weight);
            r.own_x = M::all(r.x[t]);
        }
        typename M::V loss, own;
        kernel(settings, r, loss, own);
        if (g && !c.probabilities) r.g[t] = own[0];
        if (g && !DIRECT) {
            for (int64_t j = 0; j < r.full; ++j) store(g + j * M::W, M::load(wide_g + j * M::W));
            for (int64_t j = r.full * M::W; j < classes; ++j) narrow(wide_g[j], g + j);
        }
        put_loss<T>(c, n, loss[0]);
        total += loss[0];
    }
    return total;
}

// Numbers of a block of columns, one every `stride`, to and from tiles [classes][W]. Columns side by side in memory
// move by vectors, others (short rows, few positions) one by one. The copy in also prevents the classes of a large
// image, a power of two apart, from evicting each other.
template <class IO, class T> struct Block {
    static constexpr int W = Math<T>::W;
    int64_t classes, stride, columns;
    bool side_by_side;
    const int64_t* offset;  // of every column
    TARGET void pack(const IO* from, T* tiles) const {
        for (int64_t c = 0; side_by_side && c < classes; ++c)
            for (int64_t k = 0; k < columns; k += W) {
                const IO* p = from + offset[0] + c * stride + k;
                auto v = k + W <= columns ? load(p) : load_some<T>(p, columns - k, IO());
                Math<T>::store(tiles + k * classes + c * W, v);
            }
        for (int64_t k = 0; !side_by_side && k < columns; ++k) {
            const IO* column = from + offset[k];
            T* lane = tiles + k / W * W * classes + k % W;
            for (int64_t c = 0; c < classes; ++c) lane[c * W] = widen(column[c * stride]);
        }
    }
    TARGET void unpack(const T* tiles, IO* to) const {
        for (int64_t c = 0; side_by_side && c < classes; ++c)
            for (int64_t k = 0; k < columns; k += W) {
                IO* p = to + offset[0] + c * stride + k;
                auto v = Math<T>::load(tiles + k * classes + c * W);
                if (k + W <= columns) store(p, v);
                else store_some<T>(p, v, columns - k);
            }
        for (int64_t k = 0; !side_by_side && k < columns; ++k) {
            const T* lane = tiles + k / W * W * classes + k % W;
            IO* column = to + offset[k];
            for (int64_t c = 0; c < classes; ++c) narrow(lane[c * W], column + c * stride);
        }
    }
};

// Units are blocks of rows: lanes are rows.
template <class IO> TARGET static double columns_work(const Plan& plan, int64_t begin, int64_t end, void* scratch) {
    typedef typename Compute<IO>::T T;
    typedef Math<T> M;
    constexpr int W = M::W;
    const Call& c = *plan.call;
    const int64_t classes = c.classes, inner = c.inner, size = plan.tiles * W;
    const Settings<T> settings = *(const Settings<T>*)plan.settings;
    const auto kernel = Kernel<T>::template choose<false>(c);
    Rows<T> r = common<T>(plan);
    r.full = classes, r.rest = 0;
    T *x = (T*)scratch, *y = x + size * classes;
    r.e = y + size * classes, r.h = r.e + W * classes;
    int64_t offset[MAX_TILES * W];
    double total = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
        int64_t first = unit * size, columns = c.rows * inner - first;
        if (plan.side_by_side) {
            int64_t blocks = (inner + size - 1) / size, skipped = unit % blocks * size;
            first = unit / blocks * inner + skipped, columns = inner - skipped;
        }
        columns = columns < size ? columns : size;
        int64_t start = first / inner * classes * inner, position = first % inner;
        for (int64_t k = 0; k < (plan.side_by_side ? 1 : columns); ++k) {
            offset[k] = start + position;
            if (++position == inner) position = 0, start += classes * inner;
        }
        const Block<IO, T> block = {classes, inner, columns, plan.side_by_side, offset};
        const Block<T, T> target_block = {classes, inner, columns, plan.side_by_side, offset};
        block.pack((const IO*)c.logits, x);
        if (c.probabilities) target_block.pack((const T*)c.target, y);
        typename M::V part = {};
        for (int64_t k = 0; k < columns; k += W) {
            T* tile = x + k * classes;
            const int live = columns - k < W ? (int)(columns - k) : W;
            const int64_t* target = (const int64_t*)c.target + first + k;
            typename M::I counts = M::lanes() < (typename M::Int)live;
            bool all_count = true;
            r.x = tile, r.y = y + k * classes;
            r.g = c.grad ? tile : nullptr;
            for (int i = 0; i < live && !c.probabilities; ++i) {
                const bool ignored = target[i] == c.ignore_index;
                if (ignored) counts[i] = 0, all_count = false;
                const Target<T> own(r, plan, ignored ? 0 : target[i]);
                r.target[i] = (typename M::Int)own.index;
                r.own_weight[i] = own.own_weight, r.other_weight[i] = own.other_weight;
                r.own_x[i] = tile[own.index * W + i];
            }
            typename M::V loss, own;
            kernel(settings, r, loss, own);
            loss = counts ? loss : typename M::V{};
            part += loss;
            for (int i = 0; i < live && c.reduction == NONE; ++i) put_loss<T>(c, first + k + i, loss[i]);
            for (int i = 0; i < live && c.grad && !c.probabilities; ++i) tile[r.target[i] * W + i] = own[i];
            for (int64_t j = 0; j < classes && c.grad && !all_count; ++j)
                M::store(tile + j * W, counts ? M::load(tile + j * W) : typename M::V{});
        }
        total += M::sum(part)[0];
        if (c.grad) block.unpack(x, (IO*)c.grad);
    }
    return total;
}

template <class T> void finish_call(const Call& c, double total, double denominator) {
    if (c.reduction != NONE) *(T*)c.loss = (T)(c.reduction == MEAN ? total / denominator : total);
}

template <class IO> int softmax_of(const Call& c) {
    typedef typename Compute<IO>::T T;
    constexpr int64_t W = BYTES / sizeof(T);
    Plan plan = {};
    const Settings<T> settings(c);
    plan.call = &c;
    plan.settings = &settings;
    plan.denominator = c.probabilities ? (double)(c.rows * c.inner) : index_denominator<T>(c);
    plan.weight_sum = (double)c.classes;
    if (c.weight) {
        plan.weight_sum = 0;
        for (int64_t j = 0; j < c.classes; ++j) plan.weight_sum += ((const T*)c.weight)[j];
    }
    if (c.inner == 1 && c.classes >= ACROSS_FROM) {
        plan.work = across_work<IO>;
        plan.units = c.rows;
        plan.grad_bytes = c.grad ? c.classes * (int64_t)sizeof(IO) : 0;
        plan.scratch_bytes = 4 * (c.classes / W + 1) * W * sizeof(T) + PAGE;
    } else {
        const int64_t tile = c.classes * W * (int64_t)sizeof(T), all = c.rows * ((c.inner + W - 1) / W);
        plan.tiles = BLOCK_BYTES / tile < all / 64 ? BLOCK_BYTES / tile : all / 64;
        plan.tiles = plan.tiles < 1 ? 1 : plan.tiles > MAX_TILES ? MAX_TILES : plan.tiles;
        plan.side_by_side = c.inner >= 2 * W;
        const int64_t size = plan.tiles * W;
        plan.work = columns_work<IO>;
        plan.units = plan.side_by_side ? c.rows * ((c.inner + size - 1) / size) : (c.rows * c.inner + size - 1) / size;
        plan.scratch_bytes = (2 * plan.tiles + 2) * tile;
    }
    double total;
    if (!run(plan, total)) return 1;
    finish_call<T>(c, total, plan.denominator);
    return 0;
}

int softmax(const Call& c) {
    switch (c.dtype) {
        case FLOAT64: return softmax_of<double>(c);
        case BFLOAT16: return softmax_of<Bfloat16>(c);
        case FLOAT16: return softmax_of<Float16>(c);
        default: return softmax_of<float>(c);
    }
}

// The loss of W independent yes-or-no logits and its derivative.
template <class T> struct Side { typename Math<T>::V loss, slope; };
template <class T>
FN Side<T> sigmoid_side(const Call& c, const Settings<T>& s, typename Math<T>::V x, typename Math<T>::V y,
                        typename Math<T>::V positive) {
    typedef Math<T> M;
    typedef typename M::V V;
    const T alpha_pos = c.sided ? (T)c.alpha : 1, alpha_neg = c.sided ? (T)(1 - c.alpha) : 1;
    const T margin = (T)c.margin;
    V t = M::exp(x > 0 ? -x : x), softplus = M::log1p(t), large = (T)1 / ((T)1 + t), small = t * large;
    V p = x > 0 ? large : small, not_p = x > 0 ? small : large, slope = p * not_p;
    V log_p = (x > 0 ? V{} : x) - softplus, log_not = (x > 0 ? -x : V{}) - softplus, q = p, log_not_slope = -p;
    V not_q = not_p;
    V log_q_slope = slope;
    if (margin > 0) {
        auto over = p > margin;
        q = over ? p - margin : V{};
        not_q = over ? not_p + margin : M::all(1);
        log_not = M::log1p(-q);
        log_q_slope = over ? slope : V{};
        log_not_slope = -log_q_slope / not_q;
    }
    auto hard = M::power(not_p, s.pos), easy = M::power(p + (T)1, s.hc);
    V yes = hard.value + s.eta * (easy.value - hard.value);
    V yes_slope = yes * not_p + M::clamp(log_p) * slope * (s.eta * easy.slope - (1 - s.eta) * hard.slope);
    hard = M::power(q, s.neg), easy = M::power(not_q + (T)1, s.hc);
    V no = hard.value + s.eta * (easy.value - hard.value);
    V no_slope = no * log_not_slope + M::clamp(log_not) * log_q_slope * ((1 - s.eta) * hard.slope - s.eta * easy.slope);
    V is = (y * (T)(1 - c.label_smoothing) + (T)(c.label_smoothing / 2)), is_not = (T)1 - is;
    is *= positive * alpha_pos;
    is_not *= alpha_neg;
    V loss = (is == 0 ? V{} : is * yes * log_p) + (is_not == 0 ? V{} : is_not * no * log_not);
    return {-loss, -(is * yes_slope + is_not * no_slope)};
}

// Units are stretches of SIGMOID_UNIT elements.
template <class IO> TARGET static double sigmoid_work(const Plan& plan, int64_t begin, int64_t end, void*) {
    typedef typename Compute<IO>::T T;
    typedef Math<T> M;
    typedef typename M::V V;
    const Call& c = *plan.call;
    const int64_t count = c.rows, period = c.pos_weight_size;
    const IO* logits = (const IO*)c.logits;
    const T *target = (const T*)c.target, *weight = (const T*)c.weight, *pos_weight = (const T*)c.pos_weight;
    const Settings<T> settings = *(const Settings<T>*)plan.settings;
    const T scale = (T)(c.reduction == MEAN ? 1 / plan.denominator : 1);
    double total = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
        int64_t i = unit * SIGMOID_UNIT, stop = i + SIGMOID_UNIT < count ? i + SIGMOID_UNIT : count;
        int64_t phase = period ? i % period : 0;  // of pos_weight, which repeats along the last dimension
        V part = {};
        for (; i < stop; i += M::W) {
            const int64_t live = stop - i;
            const bool whole = live >= M::W;
            V x = whole ? load(logits + i) : load_some<T>(logits + i, live, IO());
            V y = whole ? load(target + i) : load_some<T>(target + i, live, (T)0), positive = M::all(1);
            if (period && phase + M::W <= period) positive = load(pos_weight + phase);
            else if (period)
                for (int64_t k = 0; k < M::W; ++k) positive[k] = pos_weight[(phase + k) % period];
            auto side = sigmoid_side(c, settings, x, y, positive);
            if (weight) {
                V w = whole ? load(weight + i) : load_some<T>(weight + i, live, (T)0);
                side.loss *= w;
                side.slope *= w;
            }
            if (!whole) side.loss = M::lanes() < (typename M::Int)live ? side.loss : V{};
            part += side.loss;
            V g = side.slope * scale;
            if (c.grad && whole) store((IO*)c.grad + i, g);
            else if (c.grad) store_some<T>((IO*)c.grad + i, g, live);
            if (c.reduction == NONE && whole) store((T*)c.loss + i, side.loss);
            else if (c.reduction == NONE) store_some<T>((T*)c.loss + i, side.loss, live);
            phase += M::W;
            if (phase >= period && period) phase %= period;
        }
        total += M::sum(part)[0];
    }
    return total;
}

template <class IO> int sigmoid_of(const Call& c) {
    typedef typename Compute<IO>::T T;
    Plan plan = {};
    const Settings<T> settings(c);
    plan.call = &c;
    plan.settings = &settings;
    plan.work = sigmoid_work<IO>;
    plan.units = (c.rows + SIGMOID_UNIT - 1) / SIGMOID_UNIT;
    plan.denominator = (double)c.rows;
    double total;
    if (!run(plan, total)) return 1;
    finish_call<T>(c, total, plan.denominator);
    return 0;
}

int sigmoid(const Call& c) {
    switch (c.dtype) {
        case FLOAT64: return sigmoid_of<double>(c);
        case BFLOAT16: return sigmoid_of<Bfloat16>(c);
        case FLOAT16: return sigmoid_of<Float16>(c);
        default: return sigmoid_of<float>(c);
    }
}
}  // namespace ISA
}  // namespace
#undef ISA
#undef TARGET
#undef BYTES
#undef FN
#undef KERNEL
#endif
