/* A stand-in for libnvidia-ml.so.1, written by hand from the documentation of nvml.h: two A100, the first in MIG mode
 * with one instance, the second lost. Only what usina.hardware.libnvml calls. */
#include <string.h>

typedef struct { int number; } Device;
static Device gpus[2] = {{0}, {1}}, mig = {2};
static int instance;

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char busId[32]; } Pci;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned start, size; } Placement;
typedef struct { void *device; unsigned id, profileId; Placement placement; } InstanceInfo;
typedef struct { unsigned version; unsigned char cluster[16]; int status; unsigned clique; unsigned char state; unsigned mask; } Fabric;

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "550.54.15", length); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *number) { *number = 12040; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &gpus[index]; return index == 1 ? 15 : 0; }
int nvmlDeviceGetPciInfo_v3(void *device, Pci *pci) {
  memset(pci, 0, sizeof *pci);
  strcpy(pci->busId, "00000000:07:00.0");
  return 0;
}
int nvmlDeviceGetUUID(Device *device, char *text, unsigned length) {
  strncpy(text, device->number == 2 ? "MIG-1" : "GPU-1", length);
  return 0;
}
int nvmlDeviceGetName(Device *device, char *text, unsigned length) {
  strncpy(text, device->number == 2 ? "NVIDIA A100-SXM4-40GB MIG 3g.20gb" : "NVIDIA A100-SXM4-40GB", length);
  return 0;
}
int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) { memory->total = 42949672960ULL; return 0; }
int nvmlDeviceGetMigMode(Device *device, unsigned *now, unsigned *later) { *now = *later = 1; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, void **handle) {
  *handle = &mig;
  return index == 3 ? 0 : 6;
}
int nvmlDeviceGetGpuInstanceId(Device *device, unsigned *id) { *id = 2; return device->number == 2 ? 0 : 2; }
int nvmlDeviceGetComputeInstanceId(Device *device, unsigned *id) { *id = 0; return 0; }
int nvmlDeviceGetGpuInstanceById(Device *device, unsigned id, void **found) { *found = &instance; return id == 2 ? 0 : 6; }
int nvmlGpuInstanceGetInfo(void *found, InstanceInfo *info) {
  info->id = 2, info->profileId = 9, info->placement.start = 4, info->placement.size = 4;
  return found == &instance ? 0 : 2;
}
int nvmlDeviceGetP2PStatus(Device *one, Device *two, int index, int *status) { *status = index == 2 ? 0 : 5; return 0; }
int nvmlDeviceGetGpuFabricInfoV(Device *device, Fabric *fabric) {
  if (fabric->version != 0x02000024) return 25;
  memset(fabric->cluster, 0xab, 16);
  fabric->status = 0, fabric->clique = 7, fabric->state = 3, fabric->mask = ~0u;
  return 0;
}
int nvmlDeviceGetTotalEccErrors(Device *device, int type, int counter, unsigned long long *count) {
  *count = type == 1 && counter == 0 ? 5000000000ULL : 1;
  return 0;
}
int nvmlDeviceGetRemappedRows(Device *device, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
  *c = 1, *u = 2, *pending = 1, *failed = 0;
  return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) { *reasons = 0x48; return 0; }
