/* SPDX-License-Identifier: MIT */
/*
 * Which destinations a guest on QEMU's own user-mode network may reach. libslirp, a library inside QEMU, opens an
 * ordinary socket of the host for each connection that the guest makes. So without a check the guest reaches all that
 * QEMU's user reaches: 10.0.2.2 is the host's 127.0.0.1, and a donor answers the guest as it answers the host. QEMU
 * makes no other connection over IP (the pager connects to the donors), so the check stands in front of connect,
 * sendto and sendmsg.
 *
 * These are refused (with ECONNREFUSED, which libslirp passes on to the guest at once):
 *
 *   this host         loopback addresses, and all addresses of the host itself
 *   multicast         programs on the host would receive it
 *   the donors        as the rules file names them: lines "ADDRESS PORT", where "*" is any address
 *
 * Allowed all the same is port 53 of the name servers in /etc/resolv.conf: libslirp asks them for the guest.
 *
 * GHOSTBOX_NETWORK_RULES names the rules file; without it nothing is checked. The file is read again whenever it has
 * changed, so that donors may be added to a VM that runs. If it cannot be read the first time, everything is refused;
 * later, the rules that were read last apply. Sockets of other families, and incoming connections, are left alone.
 */
#include "say.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

#define RULES_MAX     1024
#define FILE_BYTES    (RULES_MAX * (INET6_ADDRSTRLEN + 8))
#define REFUSALS_SAID 16u
#define PORT_OF_DNS   53
#define RESOLV_CONF   "/etc/resolv.conf"
#define ADDRESS_WORD  "nameserver"

struct rule {
    struct in6_addr address; /* IPv4 as ::ffff:a.b.c.d */
    bool any_address;
    uint16_t port;
};

static struct {
    pthread_mutex_t lock;
    struct rule rules[RULES_MAX];
    size_t n_rules;
    struct stat read_at; /* the file's status when it was read last; st_ino 0: never */
    char text[FILE_BYTES + 1];
    unsigned int refusals;
} outgoing = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct destination {
    struct in6_addr address; /* IPv4 as ::ffff:a.b.c.d */
    uint32_t scope;
    uint16_t port;
};

static const char *rules_path;

static int system_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    return (int)syscall(SYS_connect, fd, address, length);
}

static ssize_t system_sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *address,
                             socklen_t length)
{
    return syscall(SYS_sendto, fd, data, n, flags, address, length);
}

static ssize_t system_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return syscall(SYS_sendmsg, fd, message, flags);
}

static struct {
    int (*connect)(int, const struct sockaddr *, socklen_t);
    ssize_t (*sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    ssize_t (*sendmsg)(int, const struct msghdr *, int);
} next = {system_connect, system_sendto, system_sendmsg};

__attribute__((constructor)) static void find_next_calls(void)
{
    void *found_connect = dlsym(RTLD_NEXT, "connect");
    void *found_sendto = dlsym(RTLD_NEXT, "sendto");
    void *found_sendmsg = dlsym(RTLD_NEXT, "sendmsg");

    if (found_connect)
        *(void **)&next.connect = found_connect;
    if (found_sendto)
        *(void **)&next.sendto = found_sendto;
    if (found_sendmsg)
        *(void **)&next.sendmsg = found_sendmsg;
    rules_path = getenv("GHOSTBOX_NETWORK_RULES");
}

static void map_v4(struct in6_addr *to, struct in_addr from)
{
    *to = (struct in6_addr){0};
    to->s6_addr[10] = to->s6_addr[11] = 0xff;
    memcpy(&to->s6_addr[12], &from, sizeof(from));
}

static bool parse_address(const char *text, struct in6_addr *address)
{
    struct in_addr v4;

    if (inet_pton(AF_INET, text, &v4) == 1) {
        map_v4(address, v4);
        return true;
    }
    return inet_pton(AF_INET6, text, address) == 1;
}

static bool destination_of(const struct sockaddr *from, socklen_t length, struct destination *to)
{
    if (from && length >= sizeof(struct sockaddr_in) && from->sa_family == AF_INET) {
        struct sockaddr_in v4;

        memcpy(&v4, from, sizeof(v4));
        map_v4(&to->address, v4.sin_addr);
        to->scope = 0;
        to->port = ntohs(v4.sin_port);
        return true;
    }
    if (from && length >= sizeof(struct sockaddr_in6) && from->sa_family == AF_INET6) {
        struct sockaddr_in6 v6;

        memcpy(&v6, from, sizeof(v6));
        to->address = v6.sin6_addr;
        to->scope = v6.sin6_scope_id;
        to->port = ntohs(v6.sin6_port);
        return true;
    }
    return false;
}

/* Whether an address is of this host's loopback network; Linux takes 0.0.0.0 and :: for this host, too. */
static bool is_loopback(const struct in6_addr *address)
{
    if (IN6_IS_ADDR_V4MAPPED(address))
        return address->s6_addr[12] == 127 || address->s6_addr[12] == 0;
    return IN6_IS_ADDR_LOOPBACK(address) || IN6_IS_ADDR_UNSPECIFIED(address) || IN6_IS_ADDR_V4COMPAT(address);
}

static bool is_multicast(const struct in6_addr *address)
{
    if (IN6_IS_ADDR_V4MAPPED(address))
        return address->s6_addr[12] >= 224;
    return IN6_IS_ADDR_MULTICAST(address);
}

static socklen_t socket_address(const struct destination *to, struct sockaddr_storage *address)
{
    *address = (struct sockaddr_storage){0};
    if (IN6_IS_ADDR_V4MAPPED(&to->address)) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)address;

        v4->sin_family = AF_INET;
        memcpy(&v4->sin_addr, &to->address.s6_addr[12], sizeof(v4->sin_addr));
        v4->sin_port = htons(to->port);
        return sizeof(*v4);
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;

    v6->sin6_family = AF_INET6;
    v6->sin6_addr = to->address;
    v6->sin6_scope_id = to->scope;
    v6->sin6_port = htons(to->port);
    return sizeof(*v6);
}

/*
 * Whether an address is one of this host, as the kernel sees it: a datagram socket that is connected to such an
 * address gets that address, or one of the loopback network, as its own (fib_select_path(),
 * net/ipv4/fib_semantics.c). Nothing is sent.
 */
static bool is_this_host(const struct destination *to)
{
    struct sockaddr_storage address;
    socklen_t length = socket_address(to, &address);
    int fd = socket(address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct destination own;
    bool here = false;

    if (fd < 0)
        return true; /* without a descriptor it cannot be told, so the destination is refused */
    if (next.connect(fd, (struct sockaddr *)&address, length) == 0) {
        length = sizeof(address);
        here = getsockname(fd, (struct sockaddr *)&address, &length) != 0 ||
               !destination_of((struct sockaddr *)&address, length, &own) || is_loopback(&own.address) ||
               IN6_ARE_ADDR_EQUAL(&own.address, &to->address);
    }
    close(fd);
    return here;
}

/* Reads a whole file as text. Returns its length, or -1 if it cannot be read or does not fit. */
static ssize_t read_text(int fd, char *text, size_t bytes)
{
    size_t have = 0;

    while (have < bytes) {
        ssize_t n = read(fd, text + have, bytes - have);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0) {
            text[have] = '\0';
            return (ssize_t)have;
        }
        have += (size_t)n;
    }
    return -1;
}

static bool is_name_server(const struct in6_addr *address)
{
    char text[8192];
    int fd = open(RESOLV_CONF, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read_text(fd, text, sizeof(text) - 1);
    char *line_place, *word_place;

    if (fd >= 0)
        close(fd);
    if (n < 0)
        return false;
    for (char *line = strtok_r(text, "\n", &line_place); line; line = strtok_r(NULL, "\n", &line_place)) {
        char *word = strtok_r(line, " \t", &word_place);
        char *value = word && strcmp(word, ADDRESS_WORD) == 0 ? strtok_r(NULL, " \t%", &word_place) : NULL;
        struct in6_addr server;

        if (value && parse_address(value, &server) && IN6_ARE_ADDR_EQUAL(&server, address))
            return true;
    }
    return false;
}

/* Adds the rule of a line "ADDRESS PORT". Returns false if the line is not one. With the lock. */
static bool add_rule(char *line)
{
    char *place;
    char *address = strtok_r(line, " \t", &place);
    char *port = address ? strtok_r(NULL, " \t", &place) : NULL;
    struct rule rule = {0};
    char *end;

    if (!address)
        return true; /* an empty line */
    long number = port ? strtol(port, &end, 10) : 0;

    if (!port || *end || number < 1 || number > UINT16_MAX || outgoing.n_rules == RULES_MAX)
        return false;
    rule.port = (uint16_t)number;
    rule.any_address = strcmp(address, "*") == 0;
    if (!rule.any_address && !parse_address(address, &rule.address))
        return false;
    outgoing.rules[outgoing.n_rules++] = rule;
    return true;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/*
 * Reads the rules if the file has changed. Returns false if they could be read neither now nor before. With the lock.
 */
static bool refresh_rules(void)
{
    struct stat now;
    char *place;

    if (stat(rules_path, &now) != 0)
        return outgoing.read_at.st_ino != 0;
    if (outgoing.read_at.st_ino != 0 && same_file(&now, &outgoing.read_at))
        return true;
    int fd = open(rules_path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read_text(fd, outgoing.text, sizeof(outgoing.text) - 1);

    if (fd >= 0)
        close(fd);
    if (n < 0)
        return outgoing.read_at.st_ino != 0;
    outgoing.n_rules = 0;
    for (char *line = strtok_r(outgoing.text, "\n", &place); line; line = strtok_r(NULL, "\n", &place)) {
        if (!add_rule(line))
            say("%s: a line is not \"ADDRESS PORT\"", rules_path);
    }
    outgoing.read_at = now;
    return true;
}

static bool is_named(const struct destination *to)
{
    for (size_t i = 0; i < outgoing.n_rules; i++) {
        const struct rule *rule = &outgoing.rules[i];

        if (rule->port == to->port && (rule->any_address || IN6_ARE_ADDR_EQUAL(&rule->address, &to->address)))
            return true;
    }
    return false;
}

static void say_refused(const struct destination *to, const char *why)
{
    char text[INET6_ADDRSTRLEN];

    if (outgoing.refusals++ >= REFUSALS_SAID)
        return;
    if (IN6_IS_ADDR_V4MAPPED(&to->address))
        inet_ntop(AF_INET, &to->address.s6_addr[12], text, sizeof(text));
    else
        inet_ntop(AF_INET6, &to->address, text, sizeof(text));
    say("the guest may not reach %s port %u: %s (vm.host_access opens it)", text, to->port, why);
}

/*
 * Returns why the guest may not reach a destination, or NULL if it may. Port 0 is an echo request (ping), which
 * reaches no service. With the lock.
 */
static const char *refusal(const struct destination *to)
{
    if (to->port == PORT_OF_DNS && is_name_server(&to->address))
        return NULL;
    if (is_multicast(&to->address))
        return "multicast";
    if (to->port != 0 && (is_loopback(&to->address) || is_this_host(to)))
        return "it is this host";
    if (!refresh_rules())
        return "the rules of its network cannot be read";
    return is_named(to) ? "a donor listens there" : NULL;
}

static bool may_reach(const struct sockaddr *address, socklen_t length)
{
    struct destination to;
    int saved_errno = errno;

    if (!rules_path || !destination_of(address, length, &to))
        return true;
    pthread_mutex_lock(&outgoing.lock);
    const char *why = refusal(&to);

    if (why)
        say_refused(&to, why);
    pthread_mutex_unlock(&outgoing.lock);
    errno = why ? ECONNREFUSED : saved_errno;
    return !why;
}

EXPORT int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    return may_reach(address, length) ? next.connect(fd, address, length) : -1;
}

EXPORT ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *address, socklen_t length)
{
    return may_reach(address, length) ? next.sendto(fd, data, n, flags, address, length) : -1;
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (message && !may_reach(message->msg_name, message->msg_namelen))
        return -1;
    return next.sendmsg(fd, message, flags);
}
