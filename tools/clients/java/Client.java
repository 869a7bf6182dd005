import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.zookeeper.AddWatchMode;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.Op;
import org.apache.zookeeper.OpResult;
import org.apache.zookeeper.WatchedEvent;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.Watcher.Event.EventType;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooDefs.Perms;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Stat;

/**
 * What applications do with the Java client, against a server that is killed and restarted meanwhile.
 * Prints "restart" when it wants that, and goes on when a line comes on standard input. Ends with
 * status 0 when everything was as it must be.
 */
public final class Client {
    private static final int SESSION_TIMEOUT_MS = 20_000;
    private static final int WAIT_S = 20;

    /** A session, the states it has been in and the events it was told. */
    private static final class Told implements Watcher {
        final CountDownLatch connected = new CountDownLatch(1);
        final BlockingQueue<KeeperState> states = new LinkedBlockingQueue<>();
        final BlockingQueue<WatchedEvent> events = new LinkedBlockingQueue<>();

        @Override
        public void process(WatchedEvent event) {
            if (event.getType() == EventType.None) {
                states.add(event.getState());
                if (event.getState() == KeeperState.SyncConnected) {
                    connected.countDown();
                }
            } else {
                events.add(event);
            }
        }

        void expect(EventType type, String path) throws InterruptedException {
            WatchedEvent event = events.poll(WAIT_S, TimeUnit.SECONDS);
            check(event != null, "no event, " + type + " of " + path + " expected");
            check(
                    event.getType() == type && path.equals(event.getPath()),
                    event + ", not " + type + " of " + path);
        }

        void expectState(KeeperState wanted) throws InterruptedException {
            KeeperState state = states.poll(WAIT_S, TimeUnit.SECONDS);
            check(state == wanted, "state " + state + ", not " + wanted);
        }
    }

    private interface Call {
        void run() throws Exception;
    }

    private static void check(boolean condition, String what) {
        if (!condition) {
            throw new AssertionError(what);
        }
    }

    private static void same(Object wanted, Object got) {
        check(Objects.equals(wanted, got), got + ", not " + wanted);
    }

    private static void fails(Code code, Call call) throws Exception {
        try {
            call.run();
        } catch (KeeperException error) {
            same(code, error.code());
            return;
        }
        throw new AssertionError("succeeds, " + code + " expected");
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static ZooKeeper connect(String hosts, Told told) throws Exception {
        ZooKeeper zk = new ZooKeeper(hosts, SESSION_TIMEOUT_MS, told);
        check(told.connected.await(WAIT_S, TimeUnit.SECONDS), "no session");
        told.expectState(KeeperState.SyncConnected);
        return zk;
    }

    private static void dataAndVersions(ZooKeeper zk) throws Exception {
        Stat stat = new Stat();
        same("/j", zk.create("/j", bytes("one"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT, stat));
        same(stat.getCzxid(), stat.getMzxid());
        fails(
                Code.NODEEXISTS,
                () -> zk.create("/j", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT));
        fails(
                Code.NONODE,
                () -> zk.create("/none/x", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT));
        check(Arrays.equals(bytes("one"), zk.getData("/j", false, stat)), "data");
        same(1, zk.setData("/j", bytes("two\u00e9"), 0).getVersion());
        fails(Code.BADVERSION, () -> zk.setData("/j", bytes("x"), 0));
        check(Arrays.equals(bytes("two\u00e9"), zk.getData("/j", false, stat)), "data");
        same("/j/s-0000000000", create(zk, "/j/s-", CreateMode.PERSISTENT_SEQUENTIAL));
        same("/j/s-0000000001", create(zk, "/j/s-", CreateMode.PERSISTENT_SEQUENTIAL));
        fails(Code.NOTEMPTY, () -> zk.delete("/j", -1));
        same(2, zk.getAllChildrenNumber("/j"));
        List<String> children = new ArrayList<>(zk.getChildren("/j", false, stat));
        children.sort(null);
        same(List.of("s-0000000000", "s-0000000001"), children);
        same(2, stat.getNumChildren());
        zk.delete("/j/s-0000000000", 0);
        zk.delete("/j/s-0000000001", -1);
        create(zk, "/j/container", CreateMode.CONTAINER);
        zk.create(
                "/j/ttl",
                null,
                Ids.OPEN_ACL_UNSAFE,
                CreateMode.PERSISTENT_WITH_TTL,
                stat,
                60_000);
        same(0L, zk.exists("/j/ttl", false).getEphemeralOwner());
        zk.delete("/j/container", -1);
        zk.delete("/j/ttl", -1);
        CountDownLatch synced = new CountDownLatch(1);
        AtomicInteger code = new AtomicInteger(-1);
        zk.sync(
                "/j",
                (rc, path, context) -> {
                    code.set(rc);
                    synced.countDown();
                },
                null);
        check(synced.await(WAIT_S, TimeUnit.SECONDS) && code.get() == 0, "sync");
    }

    private static String create(ZooKeeper zk, String path, CreateMode mode) throws Exception {
        return zk.create(path, new byte[0], Ids.OPEN_ACL_UNSAFE, mode);
    }

    private static void multi(ZooKeeper zk) throws Exception {
        List<OpResult> results =
                zk.multi(
                        List.of(
                                Op.create("/j/m", bytes("1"), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT),
                                Op.setData("/j/m", bytes("2"), 0),
                                Op.check("/j/m", 1),
                                Op.create(
                                        "/j/m/e", null, Ids.OPEN_ACL_UNSAFE, CreateMode.EPHEMERAL)));
        same(4, results.size());
        same("/j/m", ((OpResult.CreateResult) results.get(0)).getPath());
        same(1, ((OpResult.SetDataResult) results.get(1)).getStat().getVersion());
        try {
            zk.multi(
                    List.of(
                            Op.delete("/j/m/e", -1),
                            Op.check("/j/m", 9),
                            Op.delete("/j/m", -1)));
            throw new AssertionError("a multi with a wrong version succeeds");
        } catch (KeeperException error) {
            same(Code.BADVERSION, error.code());
            List<Integer> codes = new ArrayList<>();
            for (OpResult result : error.getResults()) {
                codes.add(((OpResult.ErrorResult) result).getErr());
            }
            same(List.of(0, Code.BADVERSION.intValue(), Code.RUNTIMEINCONSISTENCY.intValue()), codes);
        }
        List<OpResult> reads = zk.multi(List.of(Op.getData("/j/m"), Op.getChildren("/j/m")));
        check(Arrays.equals(bytes("2"), ((OpResult.GetDataResult) reads.get(0)).getData()), "data");
        same(List.of("e"), ((OpResult.GetChildrenResult) reads.get(1)).getChildren());
        same(List.of("/j/m/e"), zk.getEphemerals("/j/m"));
        zk.transaction().delete("/j/m/e", -1).delete("/j/m", 1).commit();
        same(null, zk.exists("/j/m", false));
    }

    private static void accessControl(ZooKeeper zk, String hosts) throws Exception {
        ZooKeeper stranger = connect(hosts, new Told());
        zk.addAuthInfo("digest", bytes("j:secret"));
        zk.create("/j/private", bytes("x"), Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
        fails(Code.NOAUTH, () -> stranger.getData("/j/private", false, null));
        stranger.addAuthInfo("digest", bytes("j:wrong"));
        fails(Code.NOAUTH, () -> stranger.getData("/j/private", false, null));
        Stat stat = new Stat();
        List<ACL> acl = zk.getACL("/j/private", stat);
        same(1, acl.size());
        same("digest", acl.get(0).getId().getScheme());
        same(Perms.ALL, acl.get(0).getPerms());
        fails(Code.INVALIDACL, () -> zk.setACL("/j/private", List.of(), 0));
        fails(Code.BADVERSION, () -> zk.setACL("/j/private", Ids.READ_ACL_UNSAFE, 3));
        same(1, zk.setACL("/j/private", Ids.READ_ACL_UNSAFE, 0).getAversion());
        check(Arrays.equals(bytes("x"), stranger.getData("/j/private", false, null)), "data");
        fails(Code.NOAUTH, () -> stranger.setData("/j/private", bytes("y"), -1));
        stranger.addAuthInfo("digest", bytes("j:secret"));
        fails(Code.NOAUTH, () -> stranger.setData("/j/private", bytes("y"), -1));
        zk.delete("/j/private", -1);
        stranger.close();
    }

    private static void watches(ZooKeeper zk) throws Exception {
        Told once = new Told();
        same(null, zk.exists("/j/w", once));
        create(zk, "/j/w", CreateMode.PERSISTENT);
        once.expect(EventType.NodeCreated, "/j/w");
        zk.getData("/j/w", once, null);
        zk.setData("/j/w", bytes("1"), -1);
        zk.setData("/j/w", bytes("2"), -1);
        once.expect(EventType.NodeDataChanged, "/j/w");
        zk.getChildren("/j/w", once);
        create(zk, "/j/w/x", CreateMode.PERSISTENT);
        once.expect(EventType.NodeChildrenChanged, "/j/w");

        // One after the other, and all removed in between (removeWatches leaves the server's watch
        // in place): before 3.9 a server keeps one mode per path and session.
        Told flat = new Told();
        zk.addWatch("/j/w", flat, AddWatchMode.PERSISTENT);
        zk.setData("/j/w/x", bytes("0"), -1);
        create(zk, "/j/w/z", CreateMode.PERSISTENT);
        zk.setData("/j/w", bytes("2"), -1);
        zk.delete("/j/w/z", -1);
        flat.expect(EventType.NodeChildrenChanged, "/j/w");
        flat.expect(EventType.NodeDataChanged, "/j/w");
        flat.expect(EventType.NodeChildrenChanged, "/j/w");
        zk.removeAllWatches("/j/w", Watcher.WatcherType.Any, false);
        flat.expect(EventType.PersistentWatchRemoved, "/j/w");

        Told deep = new Told();
        zk.addWatch("/j/w", deep, AddWatchMode.PERSISTENT_RECURSIVE);
        zk.setData("/j/w/x", bytes("1"), -1);
        create(zk, "/j/w/x/y", CreateMode.EPHEMERAL);
        zk.delete("/j/w/x/y", -1);
        zk.delete("/j/w/x", -1);
        zk.setData("/j/w", bytes("3"), -1);
        deep.expect(EventType.NodeDataChanged, "/j/w/x");
        deep.expect(EventType.NodeCreated, "/j/w/x/y");
        deep.expect(EventType.NodeDeleted, "/j/w/x/y");
        deep.expect(EventType.NodeDeleted, "/j/w/x");
        deep.expect(EventType.NodeDataChanged, "/j/w");
        zk.removeAllWatches("/j/w", Watcher.WatcherType.Any, false);
        deep.expect(EventType.PersistentWatchRemoved, "/j/w");
        zk.setData("/j/w", bytes("4"), -1);
        zk.delete("/j/w", -1);
        check(
                deep.events.isEmpty() && flat.events.isEmpty() && once.events.isEmpty(),
                "events that nobody asked for");
        fails(
                Code.NOWATCHER,
                () -> zk.removeWatches("/j", once, Watcher.WatcherType.Data, false));
    }

    private static void ephemerals(ZooKeeper zk, String hosts) throws Exception {
        Told told = new Told();
        ZooKeeper other = connect(hosts, new Told());
        create(other, "/j/e", CreateMode.EPHEMERAL);
        same(other.getSessionId(), zk.exists("/j/e", told).getEphemeralOwner());
        fails(Code.NOCHILDRENFOREPHEMERALS, () -> create(other, "/j/e/x", CreateMode.PERSISTENT));
        other.close();
        told.expect(EventType.NodeDeleted, "/j/e");
    }

    /** kill -9 and a new start: the session goes on, with its ephemeral and its watches. */
    private static void acrossARestart(ZooKeeper zk, Told session) throws Exception {
        Told once = new Told();
        Told deep = new Told();
        create(zk, "/j/r", CreateMode.PERSISTENT);
        zk.setData("/j/r", bytes("kept"), 0);
        create(zk, "/j/re", CreateMode.EPHEMERAL);
        Stat before = new Stat();
        zk.getData("/j/r", once, before);
        same(null, zk.exists("/j/later", once));
        zk.addWatch("/j/r", deep, AddWatchMode.PERSISTENT_RECURSIVE);
        long id = zk.getSessionId();
        System.out.println("restart");
        check(System.in.read() > 0, "the driver is gone");
        session.expectState(KeeperState.Disconnected);
        session.expectState(KeeperState.SyncConnected);
        same(id, zk.getSessionId());
        same(id, zk.exists("/j/re", false).getEphemeralOwner());
        Stat after = new Stat();
        check(Arrays.equals(bytes("kept"), zk.getData("/j/r", false, after)), "data");
        same(before, after);
        create(zk, "/j/later", CreateMode.PERSISTENT);
        once.expect(EventType.NodeCreated, "/j/later");
        zk.setData("/j/r", bytes("new"), 1);
        once.expect(EventType.NodeDataChanged, "/j/r");
        deep.expect(EventType.NodeDataChanged, "/j/r");
        create(zk, "/j/r/x", CreateMode.PERSISTENT);
        deep.expect(EventType.NodeCreated, "/j/r/x");
        check(once.events.isEmpty() && deep.events.isEmpty(), "events that nobody asked for");
    }

    /** A second connection with the session's password takes it over. */
    private static void takenOver(ZooKeeper zk, String hosts) throws Exception {
        Told told = new Told();
        ZooKeeper next =
                new ZooKeeper(
                        hosts,
                        SESSION_TIMEOUT_MS,
                        told,
                        zk.getSessionId(),
                        zk.getSessionPasswd());
        told.expectState(KeeperState.SyncConnected);
        same(zk.getSessionId(), next.getSessionId());
        next.close();
    }

    /** With a wrong password there is no session to be had. */
    private static void wrongPassword(ZooKeeper zk, String hosts) throws Exception {
        Told told = new Told();
        ZooKeeper thief =
                new ZooKeeper(hosts, SESSION_TIMEOUT_MS, told, zk.getSessionId(), new byte[16]);
        told.expectState(KeeperState.Expired);
        thief.close();
    }

    private static void run(String hosts) throws Exception {
        Told told = new Told();
        ZooKeeper zk = connect(hosts, told);
        dataAndVersions(zk);
        multi(zk);
        accessControl(zk, hosts);
        watches(zk);
        ephemerals(zk, hosts);
        acrossARestart(zk, told);
        wrongPassword(zk, hosts);
        takenOver(zk, hosts);
        zk.close();
        ZooKeeper last = connect(hosts, new Told());
        same(null, last.exists("/j/re", false));
        last.close();
        System.out.println("the Java client finds everything as it must be");
    }

    public static void main(String[] args) {
        try {
            run(args[0]);
            System.exit(0);
        } catch (Throwable error) {
            error.printStackTrace();
            System.exit(1);
        }
    }
}
