/*
 * What applications do with the C client, against a server that is killed and restarted meanwhile.
 *
 *   client HOST:PORT
 *
 * Prints "restart" when it wants the server killed and started again, and goes on when a line comes
 * on standard input. Exit status 0 when everything was as it must be; otherwise the first thing that
 * was not is printed.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <zookeeper/zookeeper.h>

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: not as it must be: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

/* Calls that must answer ZOK, or another given code. */
#define EXPECT(code, call)                                                                 \
    do {                                                                                   \
        int got_ = (call);                                                                 \
        if (got_ != (code)) {                                                              \
            fprintf(stderr, "%s:%d: %s: %s expected, got %s\n", __FILE__, __LINE__, #call, \
                    zerror(code), zerror(got_));                                           \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)
#define OK(call) EXPECT(ZOK, call)

enum { SESSION_TIMEOUT_MS = 20000, EVENTS_MAX = 64, WAIT_S = 20 };

/* What a handle has been told: its state and the watch events, in order. */
struct told {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int connected;
    int expired;
    int lost;
    int count;
    struct {
        int type;
        char path[256];
    } events[EVENTS_MAX];
};

static void told_init(struct told *told) {
    memset(told, 0, sizeof *told);
    pthread_mutex_init(&told->lock, NULL);
    pthread_cond_init(&told->changed, NULL);
}

static void on_event(zhandle_t *handle, int type, int state, const char *path, void *context) {
    struct told *told = context;
    (void)handle;
    pthread_mutex_lock(&told->lock);
    if (type == ZOO_SESSION_EVENT) {
        if (told->connected && state != ZOO_CONNECTED_STATE) {
            told->lost++;
        }
        told->connected = state == ZOO_CONNECTED_STATE;
        told->expired |= state == ZOO_EXPIRED_SESSION_STATE;
    } else if (told->count < EVENTS_MAX) {
        told->events[told->count].type = type;
        snprintf(told->events[told->count].path, sizeof told->events[0].path, "%s", path);
        told->count++;
    }
    pthread_cond_broadcast(&told->changed);
    pthread_mutex_unlock(&told->lock);
}

static struct timespec deadline(void) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += WAIT_S;
    return at;
}

static void wait_until_connected(struct told *told) {
    struct timespec until = deadline();
    pthread_mutex_lock(&told->lock);
    while (!told->connected) {
        CHECK(pthread_cond_timedwait(&told->changed, &told->lock, &until) == 0);
    }
    pthread_mutex_unlock(&told->lock);
}

static void wait_until_lost(struct told *told) {
    struct timespec until = deadline();
    pthread_mutex_lock(&told->lock);
    while (!told->lost) {
        CHECK(pthread_cond_timedwait(&told->changed, &told->lock, &until) == 0);
    }
    pthread_mutex_unlock(&told->lock);
}

/* The event number `index` must be of this type and path; waits for it. */
static void expect_event(struct told *told, int index, int type, const char *path) {
    struct timespec until = deadline();
    pthread_mutex_lock(&told->lock);
    while (told->count <= index) {
        CHECK(pthread_cond_timedwait(&told->changed, &told->lock, &until) == 0);
    }
    if (told->events[index].type != type || strcmp(told->events[index].path, path) != 0) {
        fprintf(stderr, "event %d is %d of %s, not %d of %s\n", index, told->events[index].type,
                told->events[index].path, type, path);
        exit(1);
    }
    pthread_mutex_unlock(&told->lock);
}

static zhandle_t *connect_to(const char *hosts, struct told *told, const clientid_t *id) {
    told_init(told);
    zhandle_t *handle = zookeeper_init(hosts, on_event, SESSION_TIMEOUT_MS, id, told, 0);
    CHECK(handle != NULL);
    wait_until_connected(told);
    return handle;
}

static void restart_server(void) {
    char line[64];
    printf("restart\n");
    fflush(stdout);
    CHECK(fgets(line, sizeof line, stdin) != NULL);
}

static void on_synced(int code, const char *path, const void *context) {
    struct told *told = (struct told *)context;
    CHECK(code == ZOK && path != NULL);
    pthread_mutex_lock(&told->lock);
    told->count++;
    pthread_cond_broadcast(&told->changed);
    pthread_mutex_unlock(&told->lock);
}

static void sync_path(zhandle_t *zk, const char *path) {
    struct told told;
    struct timespec until = deadline();
    told_init(&told);
    OK(zoo_async(zk, path, on_synced, &told));
    pthread_mutex_lock(&told.lock);
    while (told.count == 0) {
        CHECK(pthread_cond_timedwait(&told.changed, &told.lock, &until) == 0);
    }
    pthread_mutex_unlock(&told.lock);
}

static void data_and_versions(zhandle_t *zk) {
    char path[256], buffer[256];
    int length = sizeof buffer;
    struct Stat stat;
    OK(zoo_create(zk, "/c", "one", 3, &ZOO_OPEN_ACL_UNSAFE, 0, path, sizeof path));
    CHECK(strcmp(path, "/c") == 0);
    EXPECT(ZNODEEXISTS, zoo_create(zk, "/c", "one", 3, &ZOO_OPEN_ACL_UNSAFE, 0, NULL, 0));
    EXPECT(ZNONODE, zoo_create(zk, "/none/x", "", 0, &ZOO_OPEN_ACL_UNSAFE, 0, NULL, 0));
    OK(zoo_get(zk, "/c", 0, buffer, &length, &stat));
    CHECK(length == 3 && memcmp(buffer, "one", 3) == 0);
    CHECK(stat.version == 0 && stat.czxid == stat.mzxid && stat.dataLength == 3);
    OK(zoo_set2(zk, "/c", "three", 5, 0, &stat));
    CHECK(stat.version == 1 && stat.mzxid > stat.czxid && stat.dataLength == 5);
    EXPECT(ZBADVERSION, zoo_set(zk, "/c", "x", 1, 0));
    OK(zoo_create2(zk, "/c/s-", "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_SEQUENCE, path, sizeof path, &stat));
    CHECK(strcmp(path, "/c/s-0000000000") == 0);
    EXPECT(ZNOTEMPTY, zoo_delete(zk, "/c", -1));
    OK(zoo_delete(zk, path, 0));
    struct String_vector children;
    OK(zoo_get_children2(zk, "/c", 0, &children, &stat));
    CHECK(children.count == 0 && stat.numChildren == 0 && stat.cversion == 2);
    deallocate_String_vector(&children);
    sync_path(zk, "/c");
    OK(zoo_create2_ttl(zk, "/c/ephemeral-parent", "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_CONTAINER, -1,
                       path, sizeof path, &stat));
    CHECK(stat.ephemeralOwner == 0);
    OK(zoo_delete(zk, "/c/ephemeral-parent", -1));
}

static void multi(zhandle_t *zk) {
    zoo_op_t ops[4];
    zoo_op_result_t results[4];
    char made[64];
    struct Stat stat;
    zoo_create_op_init(&ops[0], "/c/m", "1", 1, &ZOO_OPEN_ACL_UNSAFE, 0, made, sizeof made);
    zoo_set_op_init(&ops[1], "/c/m", "2", 1, 0, &stat);
    zoo_check_op_init(&ops[2], "/c/m", 1);
    zoo_delete_op_init(&ops[3], "/c/m", 1);
    OK(zoo_multi(zk, 4, ops, results));
    CHECK(stat.version == 1 && strcmp(made, "/c/m") == 0);
    EXPECT(ZNONODE, zoo_exists(zk, "/c/m", 0, NULL));
    zoo_check_op_init(&ops[2], "/c/m", 7);
    EXPECT(ZBADVERSION, zoo_multi(zk, 4, ops, results));
    CHECK(results[0].err == ZOK && results[2].err == ZBADVERSION);
    CHECK(results[3].err == ZRUNTIMEINCONSISTENCY);
    EXPECT(ZNONODE, zoo_exists(zk, "/c/m", 0, NULL));
}

static void access_control(zhandle_t *zk, const char *hosts) {
    struct told told;
    struct ACL_vector acl;
    struct Stat stat;
    zhandle_t *stranger = connect_to(hosts, &told, NULL);
    OK(zoo_add_auth(zk, "digest", "c:secret", 8, NULL, NULL));
    OK(zoo_create(zk, "/c/private", "x", 1, &ZOO_CREATOR_ALL_ACL, 0, NULL, 0));
    char buffer[8];
    int length = sizeof buffer;
    EXPECT(ZNOAUTH, zoo_get(stranger, "/c/private", 0, buffer, &length, NULL));
    OK(zoo_get(zk, "/c/private", 0, buffer, &length, NULL));
    OK(zoo_get_acl(zk, "/c/private", &acl, &stat));
    CHECK(acl.count == 1 && strcmp(acl.data[0].id.scheme, "digest") == 0);
    CHECK(acl.data[0].perms == ZOO_PERM_ALL && stat.aversion == 0);
    deallocate_ACL_vector(&acl);
    OK(zoo_set_acl(zk, "/c/private", 0, &ZOO_READ_ACL_UNSAFE));
    OK(zoo_get(stranger, "/c/private", 0, buffer, &length, NULL));
    EXPECT(ZNOAUTH, zoo_set(stranger, "/c/private", "y", 1, -1));
    OK(zookeeper_close(stranger));
    OK(zoo_delete(zk, "/c/private", -1));
}

static void watches(zhandle_t *zk, struct told *told) {
    char buffer[64];
    int length = sizeof buffer;
    struct String_vector children;
    EXPECT(ZNONODE, zoo_wexists(zk, "/c/w", on_event, told, NULL));
    OK(zoo_create(zk, "/c/w", "0", 1, &ZOO_OPEN_ACL_UNSAFE, 0, NULL, 0));
    expect_event(told, 0, ZOO_CREATED_EVENT, "/c/w");
    OK(zoo_wget(zk, "/c/w", on_event, told, buffer, &length, NULL));
    OK(zoo_set(zk, "/c/w", "1", 1, -1));
    OK(zoo_set(zk, "/c/w", "2", 1, -1));
    expect_event(told, 1, ZOO_CHANGED_EVENT, "/c/w");
    OK(zoo_wget_children(zk, "/c/w", on_event, told, &children));
    deallocate_String_vector(&children);
    OK(zoo_create(zk, "/c/w/x", "", 0, &ZOO_OPEN_ACL_UNSAFE, 0, NULL, 0));
    expect_event(told, 2, ZOO_CHILD_EVENT, "/c/w");
    OK(zoo_delete(zk, "/c/w/x", -1));
    OK(zoo_wexists(zk, "/c/w", on_event, told, NULL));
    OK(zoo_delete(zk, "/c/w", -1));
    expect_event(told, 3, ZOO_DELETED_EVENT, "/c/w");
    CHECK(told->count == 4);
    EXPECT(ZNOWATCHER, zoo_remove_watches(zk, "/c", ZWATCHTYPE_DATA, on_event, told, 0));
}

/* The ephemeral of a session that closes goes; that of one that goes on stays. */
static void ephemerals(zhandle_t *zk, const char *hosts, struct told *told) {
    struct told other_told;
    struct Stat stat;
    zhandle_t *other = connect_to(hosts, &other_told, NULL);
    OK(zoo_create(other, "/c/e", "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_EPHEMERAL, NULL, 0));
    EXPECT(ZNOCHILDRENFOREPHEMERALS,
           zoo_create(other, "/c/e/x", "", 0, &ZOO_OPEN_ACL_UNSAFE, 0, NULL, 0));
    OK(zoo_wexists(zk, "/c/e", on_event, told, &stat));
    CHECK(stat.ephemeralOwner == zoo_client_id(other)->client_id);
    OK(zookeeper_close(other));
    expect_event(told, 4, ZOO_DELETED_EVENT, "/c/e");
}

/* kill -9 and a new start: the session goes on, with its ephemeral and its watches. */
static void across_a_restart(zhandle_t *zk, struct told *told) {
    char buffer[64];
    int length = sizeof buffer;
    struct Stat before, after;
    OK(zoo_create(zk, "/c/r", "kept", 4, &ZOO_OPEN_ACL_UNSAFE, 0, NULL, 0));
    OK(zoo_create(zk, "/c/re", "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_EPHEMERAL, NULL, 0));
    OK(zoo_wget(zk, "/c/r", on_event, told, buffer, &length, &before));
    clientid_t id = *zoo_client_id(zk);
    restart_server();
    wait_until_lost(told);
    wait_until_connected(told);
    CHECK(!told->expired && memcmp(&id, zoo_client_id(zk), sizeof id) == 0);
    OK(zoo_exists(zk, "/c/re", 0, &after));
    CHECK(after.ephemeralOwner == id.client_id);
    length = sizeof buffer;
    OK(zoo_get(zk, "/c/r", 0, buffer, &length, &after));
    CHECK(length == 4 && memcmp(buffer, "kept", 4) == 0);
    CHECK(memcmp(&before, &after, sizeof before) == 0);
    OK(zoo_set(zk, "/c/r", "new", 3, 0));
    expect_event(told, 5, ZOO_CHANGED_EVENT, "/c/r");
    CHECK(told->count == 6);
}

int main(int argc, char **argv) {
    struct told told, last_told;
    CHECK(argc == 2);
    /* The library reports each refused connection; across a restart that is expected. */
    zoo_set_debug_level((ZooLogLevel)0);
    zoo_deterministic_conn_order(1);
    zhandle_t *zk = connect_to(argv[1], &told, NULL);
    data_and_versions(zk);
    multi(zk);
    access_control(zk, argv[1]);
    watches(zk, &told);
    ephemerals(zk, argv[1], &told);
    across_a_restart(zk, &told);
    OK(zookeeper_close(zk));
    zk = connect_to(argv[1], &last_told, NULL);
    EXPECT(ZNONODE, zoo_exists(zk, "/c/re", 0, NULL));
    OK(zookeeper_close(zk));
    printf("the C client finds everything as it must be\n");
    return 0;
}
