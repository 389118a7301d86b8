/* SPDX-License-Identifier: MIT */
#include "guest_moved.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The lines of /proc/vmstat about pages that move between tiers or to swap; a kernel may lack some of them. */
static const char *const vmstat_names[N_VMSTAT] = {
    "pgpromote_success", "pgdemote_kswapd", "pgdemote_direct",  "pgdemote_khugepaged", "pswpin",
    "pswpout",           "pgmajfault",      "numa_hint_faults", "pgmigrate_fail",      "pgpromote_candidate",
    "pgmigrate_success",
};

static void vmstat_read(uint64_t values[N_VMSTAT])
{
    FILE *file = fopen("/proc/vmstat", "re");
    char name[64];
    uint64_t value;

    memset(values, 0, N_VMSTAT * sizeof(*values));
    if (!file)
        return;
    while (fscanf(file, "%63s %" SCNu64, name, &value) == 2)
        for (size_t i = 0; i < N_VMSTAT; i++)
            if (strcmp(name, vmstat_names[i]) == 0)
                values[i] = value;
    fclose(file);
}

/*
 * Returns the processor time of a kernel thread that moves pages (fields 2, 14, 15 of proc_pid_stat(5)); 0 for
 * others.
 */
static double mover_s(const char *pid)
{
    static const char *const movers[] = {"kdamond", "kswapd", "kcompactd"};
    char path[300], name[64];
    uint64_t user = 0, system = 0;
    bool moves = false;

    snprintf(path, sizeof(path), "/proc/%s/stat", pid);
    FILE *file = fopen(path, "re");

    if (!file)
        return 0;
    if (fscanf(file, "%*d (%63[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %" SCNu64 " %" SCNu64, name, &user,
               &system) == 3)
        for (size_t i = 0; i < sizeof(movers) / sizeof(movers[0]); i++)
            moves = moves || strncmp(name, movers[i], strlen(movers[i])) == 0;
    fclose(file);
    return moves ? (double)(user + system) / (double)sysconf(_SC_CLK_TCK) : 0;
}

void moved_read(struct moved *moved)
{
    DIR *processes = opendir("/proc");
    const struct dirent *entry;

    vmstat_read(moved->vmstat);
    moved->movers_s = 0;
    while (processes && (entry = readdir(processes)))
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
            moved->movers_s += mover_s(entry->d_name);
    if (processes)
        closedir(processes);
}

void moved_print(const struct moved *before, const struct moved *after)
{
    printf(", \"movers_s\": %.2f, \"vmstat\": {", after->movers_s - before->movers_s);
    for (size_t i = 0; i < N_VMSTAT; i++)
        printf("%s\"%s\": %" PRIu64, i ? ", " : "", vmstat_names[i], after->vmstat[i] - before->vmstat[i]);
    printf("}}\n");
    fflush(stdout);
}
