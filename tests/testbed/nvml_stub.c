// A stand-in for NVIDIA's libnvidia-ml.so.1: a real shared library that answers from a text file.
//
//   cc -shared -fPIC -O1 -Wall -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml_stub.c
//
// The state file ($NVML_STUB) is looked at on every call and read where it has changed, so a test
// changes the "hardware" while the program under test runs. One fact a line; "-" for a number means
// that it is not supported:
//
//   driver VERSION
//   init CODE                          what nvmlInit answers (18: library/driver mismatch)
//   gpu INDEX UUID TOTAL_MIB USED_MIB UTIL TEMP MILLIWATTS STATUS NAME...
//                                      STATUS is an nvmlReturn: 0 ok, 15 GPU_IS_LOST, 16 RESET
//   compute|graphics|mps INDEX PID MIB    MIB "-": the driver does not tell (VALUE_NOT_AVAILABLE)
//   accounting INDEX PID PEAK_MIB      also turns accounting mode on for that card
//   power_limit INDEX MILLIWATTS       what the card is held to (nothing said: not supported)
//   clocks INDEX MASK                  clocks event reasons, NVML's bits (0x4: power cap)
//   ecc INDEX CORRECTED UNCORRECTED    errors since the driver was loaded
//   mig INDEX UUID TOTAL_MIB USED_MIB NAME...   a MIG device; MIG mode is on for its card
//   mig_mode INDEX 0|1                 MIG mode without (or before) any MIG device
//   xid INDEX CODE                     an XID event, told once to whoever waits for them; later
//                                      lines are later events
//   limit INDEX MIB [CGROUP]           the driver's limit on that card, for this cgroup and those
//                                      below it (all where none is named); MIB "-": no limit set
//   no FUNCTION                        this function answers NOT_SUPPORTED (3)
//   old FUNCTION                       this function answers FUNCTION_NOT_FOUND (13)
//   code FUNCTION CODE                 this function answers CODE
//
// FUNCTION is NVML's name without "nvml", e.g. "DeviceGetMemoryInfo_v2".
// Left out on purpose, so that pynvml misses the symbol as with an old driver:
// nvmlDeviceGetMPSComputeRunningProcesses_v2. Build with -DOLD_DRIVER to leave out the _v3 process
// lists, memory v2, MIG, the reasons under their newer name, and the memory limits (which came with
// driver 615) as well.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, FUNCTION_NOT_FOUND = 13,
    VERSION_MISMATCH = 25
};
#define UNKNOWN (~0ull)
#define MIB(n) ((n) << 20)

typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { char uuid[96], name[96]; u64 total, used, util, temp, milliwatts; int status; int accounting;
    u64 power_limit, clocks, corrected, uncorrected, mig_mode; } Gpu;
typedef struct { char uuid[96], name[96]; u64 total, used; u32 gpu; } Mig;
typedef struct { u32 gpu, code; } Xid;
typedef struct { char list[16]; u32 gpu, pid; u64 bytes; } Process;
typedef struct { char function[96]; int code; } Answer;
typedef struct { u32 gpu; u64 bytes; char cgroup[384]; } Limit;

static Gpu gpus[16];
static Process processes[128];
static Answer answers[32];
static Limit limits[32];
static Mig migs[32];
static Xid xids[64];
static int mig_count, xid_count;
static int gpu_count, process_count, answer_count, limit_count, init_code, initialized;
static char driver[80];

static u64 number(const char *text) { return strcmp(text, "-") ? strtoull(text, NULL, 10) : UNKNOWN; }
static u64 mib(const char *text) { u64 n = number(text); return n == UNKNOWN ? n : MIB(n); }

// Whether the file is as it was when last read. One that was written a moment ago may be written
// again without a new time (as git's index knows): it is read anew.
static int unchanged(const char *path) {
    static struct stat last;
    struct stat now;
    struct timespec clock;
    if (!path || stat(path, &now)) { memset(&last, 0, sizeof last); return 0; }
    clock_gettime(CLOCK_REALTIME, &clock);
    int same = now.st_ino == last.st_ino && now.st_size == last.st_size
        && !memcmp(&now.st_mtim, &last.st_mtim, sizeof now.st_mtim)
        && !memcmp(&now.st_ctim, &last.st_ctim, sizeof now.st_ctim);
    int settled = clock.tv_sec > now.st_ctim.tv_sec + 1;
    memset(&last, 0, sizeof last);
    if (settled) last = now;
    return same;
}

static void load(void) {
    const char *path = getenv("NVML_STUB");
    if (unchanged(path)) return;
    FILE *file = path ? fopen(path, "r") : NULL;
    mig_count = xid_count = 0;
    gpu_count = process_count = answer_count = limit_count = init_code = 0;
    strcpy(driver, "570.124.06");
    memset(gpus, 0, sizeof gpus);
    if (!file) { init_code = DRIVER_NOT_LOADED; return; }
    char line[512], a[96], b[96], c[96], d[96], e[96], f[96], name[96];
    u32 index, pid; int code;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "init %d", &init_code) == 1 || sscanf(line, "driver %79s", driver) == 1) continue;
        if (gpu_count < 16 && sscanf(line, "gpu %u %95s %95s %95s %95s %95s %95s %d %95[^\n]",
                                     &index, a, b, c, d, e, f, &code, name) == 9) {
            Gpu *gpu = &gpus[gpu_count++];
            strcpy(gpu->uuid, a); strcpy(gpu->name, name);
            gpu->total = mib(b); gpu->used = mib(c);
            gpu->util = number(d); gpu->temp = number(e); gpu->milliwatts = number(f);
            gpu->status = code;
            gpu->power_limit = gpu->clocks = gpu->corrected = gpu->uncorrected = gpu->mig_mode = UNKNOWN;
        } else if (sscanf(line, "power_limit %u %95s", &index, a) == 2) {
            if (index < 16) gpus[index].power_limit = number(a);
        } else if (sscanf(line, "clocks %u %95s", &index, a) == 2) {
            if (index < 16) gpus[index].clocks = strtoull(a, NULL, 0);
        } else if (sscanf(line, "ecc %u %95s %95s", &index, a, b) == 3) {
            if (index < 16) { gpus[index].corrected = number(a); gpus[index].uncorrected = number(b); }
        } else if (sscanf(line, "mig_mode %u %95s", &index, a) == 2) {
            if (index < 16) gpus[index].mig_mode = number(a);
        } else if (mig_count < 32 && sscanf(line, "mig %u %95s %95s %95s %95[^\n]", &index, a, b, c, name) == 5) {
            Mig *mig = &migs[mig_count++];
            strcpy(mig->uuid, a); strcpy(mig->name, name);
            mig->total = mib(b); mig->used = mib(c); mig->gpu = index;
            if (index < 16) gpus[index].mig_mode = 1;
        } else if (xid_count < 64 && sscanf(line, "xid %u %u", &index, &pid) == 2) {
            xids[xid_count].gpu = index; xids[xid_count++].code = pid;
        } else if (answer_count < 32 && sscanf(line, "no %95s", a) == 1) {
            strcpy(answers[answer_count].function, a); answers[answer_count++].code = NOT_SUPPORTED;
        } else if (answer_count < 32 && sscanf(line, "old %95s", a) == 1) {
            strcpy(answers[answer_count].function, a); answers[answer_count++].code = FUNCTION_NOT_FOUND;
        } else if (answer_count < 32 && sscanf(line, "code %95s %d", a, &code) == 2) {
            strcpy(answers[answer_count].function, a); answers[answer_count++].code = code;
        } else if (limit_count < 32 && sscanf(line, "limit %u %95s", &index, a) == 2) {
            Limit *limit = &limits[limit_count++];
            limit->gpu = index; limit->bytes = mib(a); limit->cgroup[0] = 0;
            sscanf(line, "limit %*u %*s %383[^\n]", limit->cgroup);
        } else if (process_count < 128 && sscanf(line, "%15s %u %u %95s", a, &index, &pid, b) == 4) {
            Process *process = &processes[process_count++];
            strcpy(process->list, a); process->gpu = index; process->pid = pid; process->bytes = mib(b);
            if (!strcmp(a, "accounting") && index < 16) gpus[index].accounting = 1;
        }
    }
    fclose(file);
}

static int told(const char *function) {
    for (int i = 0; i < answer_count; i++)
        if (!strcmp(answers[i].function, function + 4)) return answers[i].code;  // past "nvml"
    return OK;
}

// The opening of every function; the third also finds the card and answers its status.
#define BEGIN_FREE load(); { int code_ = told(__func__); if (code_) return code_; }
#define BEGIN BEGIN_FREE if (!initialized) return UNINITIALIZED;
#define BEGIN_DEVICE BEGIN Gpu *gpu = device; \
    if (gpu < gpus || gpu >= gpus + gpu_count) return INVALID_ARGUMENT; \
    if (gpu->status) return gpu->status;

static int put(char *out, u32 size, const char *text) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}
static int put_number(u32 *out, u64 value) {
    if (value == UNKNOWN) return NOT_SUPPORTED;
    *out = (u32)value;
    return OK;
}

int nvmlInitWithFlags(u32 flags) { (void)flags; BEGIN_FREE if (!init_code) initialized++; return init_code; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { if (!initialized) return UNINITIALIZED; initialized--; return OK; }
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "stub error"; }
int nvmlSystemGetDriverVersion(char *out, u32 size) { BEGIN return put(out, size, driver); }
int nvmlDeviceGetCount_v2(u32 *out) { BEGIN *out = gpu_count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **out) {
    BEGIN
    if (index >= (u32)gpu_count) return INVALID_ARGUMENT;
    *out = &gpus[index];
    return gpus[index].status;
}
// A MIG device has a handle of its own, for a few of the functions; this answers for it.
#define MIG_DEVICE(answer) { load(); Mig *mig = device; \
    if (mig >= migs && mig < migs + mig_count) { int code_ = told(__func__); return code_ ? code_ : (answer); } }
int nvmlDeviceGetIndex(void *device, u32 *out) { BEGIN_DEVICE *out = (u32)(gpu - gpus); return OK; }
int nvmlDeviceGetName(void *device, char *out, u32 size) { MIG_DEVICE(put(out, size, mig->name)) BEGIN_DEVICE return put(out, size, gpu->name); }
int nvmlDeviceGetUUID(void *device, char *out, u32 size) { MIG_DEVICE(put(out, size, mig->uuid)) BEGIN_DEVICE return put(out, size, gpu->uuid); }
int nvmlDeviceGetTemperature(void *device, u32 sensor, u32 *out) { (void)sensor; BEGIN_DEVICE return put_number(out, gpu->temp); }
int nvmlDeviceGetPowerUsage(void *device, u32 *out) { BEGIN_DEVICE return put_number(out, gpu->milliwatts); }
int nvmlDeviceGetEnforcedPowerLimit(void *device, u32 *out) { BEGIN_DEVICE return put_number(out, gpu->power_limit); }
static int put_large(u64 *out, u64 value) {
    if (value == UNKNOWN) return NOT_SUPPORTED;
    *out = value;
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, u64 *out) { BEGIN_DEVICE return put_large(out, gpu->clocks); }
int nvmlDeviceGetTotalEccErrors(void *device, u32 kind, u32 counter, u64 *out) {
    (void)counter; BEGIN_DEVICE return put_large(out, kind ? gpu->uncorrected : gpu->corrected);
}
int nvmlDeviceGetUtilizationRates(void *device, u32 *out) { BEGIN_DEVICE out[1] = 0; return put_number(out, gpu->util); }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { BEGIN_DEVICE *major = 9; *minor = 0; return OK; }

// XID events: those in the file, in order, each once to a set. One program has one set here.
static int told_xids, xid_registered[16];
int nvmlEventSetCreate(void **out) { BEGIN *out = &told_xids; told_xids = 0; memset(xid_registered, 0, sizeof xid_registered); return OK; }
int nvmlEventSetFree(void *set) { (void)set; BEGIN return OK; }
int nvmlDeviceRegisterEvents(void *device, u64 types, void *set) {
    (void)types; (void)set; BEGIN_DEVICE xid_registered[gpu - gpus] = 1; return OK;
}
struct event { void *device; u64 type, data; u32 gpu_instance, compute_instance; };
int nvmlEventSetWait_v2(void *set, struct event *out, u32 timeout_ms) {
    (void)set; (void)timeout_ms;
    BEGIN
    while (told_xids < xid_count) {
        Xid *xid = &xids[told_xids++];
        if (xid->gpu >= 16 || !xid_registered[xid->gpu]) continue;
        *out = (struct event){&gpus[xid->gpu], 8, xid->code, ~0u, ~0u};
        return OK;
    }
    return TIMEOUT;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetCurrentClocksEventReasons(void *device, u64 *out) { BEGIN_DEVICE return put_large(out, gpu->clocks); }
int nvmlDeviceGetMigMode(void *device, u32 *current, u32 *pending) {
    BEGIN_DEVICE *pending = (u32)gpu->mig_mode; return put_number(current, gpu->mig_mode);
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, u32 *out) { BEGIN_DEVICE *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, u32 index, void **out) {
    BEGIN_DEVICE
    // like a real card: the slots are not filled in order (here every second one)
    for (int i = 0, slot = 0; i < mig_count; i++)
        if (migs[i].gpu == (u32)(gpu - gpus)) {
            if ((u32)slot == index) { *out = &migs[i]; return OK; }
            slot += 2;
        }
    return NOT_FOUND;
}
#endif

struct memory_v1 { u64 total, free, used; };
struct memory_v2 { u32 version; u64 total, reserved, free, used; };
#define RESERVED MIB(512ull)

// As on a real card: version 1 counts what the driver reserves as used, version 2 keeps it apart.
static int mig_memory_v1(Mig *mig, struct memory_v1 *out) {
    if (mig->total == UNKNOWN) return NOT_SUPPORTED;
    *out = (struct memory_v1){mig->total, mig->total - mig->used, mig->used};
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *device, struct memory_v1 *out) {
    MIG_DEVICE(mig_memory_v1(mig, out))
    BEGIN_DEVICE
    if (gpu->total == UNKNOWN) return NOT_SUPPORTED;
    *out = (struct memory_v1){gpu->total, gpu->total - gpu->used - RESERVED, gpu->used + RESERVED};
    return OK;
}
#ifndef OLD_DRIVER
static int mig_memory_v2(Mig *mig, struct memory_v2 *out) {
    if (mig->total == UNKNOWN) return NOT_SUPPORTED;
    out->total = mig->total; out->reserved = 0; out->used = mig->used; out->free = mig->total - mig->used;
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *out) {
    MIG_DEVICE(mig_memory_v2(mig, out))
    BEGIN_DEVICE
    if (gpu->total == UNKNOWN) return NOT_SUPPORTED;
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    out->total = gpu->total; out->reserved = RESERVED; out->used = gpu->used;
    out->free = gpu->total - gpu->used - RESERVED;
    return OK;
}
#endif

struct process { u32 pid; u64 bytes; u32 gpu_instance, compute_instance; };

static int list(const char *name, Gpu *gpu, u32 *count, struct process *out) {
    u32 capacity = *count, found = 0;
    for (int i = 0; i < process_count; i++)
        if (processes[i].gpu == (u32)(gpu - gpus) && !strcmp(processes[i].list, name)) {
            if (out && found < capacity) out[found] = (struct process){processes[i].pid, processes[i].bytes, ~0u, ~0u};
            found++;
        }
    *count = found;
    return found && (!out || found > capacity) ? INSUFFICIENT_SIZE : OK;
}
#define LIST(function, name) \
    int function(void *device, u32 *count, void *out) { BEGIN_DEVICE return list(name, gpu, count, out); }
LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
#ifndef OLD_DRIVER
LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
#endif

struct accounting { u32 gpu_percent, memory_percent; u64 peak, time, start; u32 running, reserved[5]; };
int nvmlDeviceGetAccountingMode(void *device, u32 *out) { BEGIN_DEVICE *out = gpu->accounting; return OK; }
int nvmlDeviceGetAccountingStats(void *device, u32 pid, struct accounting *out) {
    BEGIN_DEVICE
    for (int i = 0; i < process_count; i++)
        if (processes[i].gpu == (u32)(gpu - gpus) && processes[i].pid == pid && !strcmp(processes[i].list, "accounting")) {
            memset(out, 0, sizeof *out);
            out->peak = processes[i].bytes;
            return OK;
        }
    return NOT_FOUND;
}

#ifndef OLD_DRIVER
struct memory_limits { const char *cgroup; u64 soft, hard, used; };

// As NVML documents it: no limit is soft 0 and hard ~0; a cgroup below one with a limit reads that
// one. Of several the last line that fits is told.
int nvmlDeviceGetMemoryLimits_v1(void *device, struct memory_limits *out) {
    BEGIN_DEVICE
    if (!out->cgroup || strncmp(out->cgroup, "/sys/fs/cgroup/", 15)) return INVALID_ARGUMENT;
    out->soft = 0; out->hard = UNKNOWN; out->used = 0;
    for (int i = 0; i < limit_count; i++) {
        size_t length = strlen(limits[i].cgroup);
        int below = !strncmp(out->cgroup, limits[i].cgroup, length)
            && (!length || !out->cgroup[length] || out->cgroup[length] == '/');
        if (limits[i].gpu != (u32)(gpu - gpus) || !below) continue;
        out->hard = limits[i].bytes;
        out->soft = out->hard == UNKNOWN ? 0 : out->hard;
    }
    return OK;
}
#endif
