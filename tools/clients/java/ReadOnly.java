import java.nio.charset.StandardCharsets;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.WatchedEvent;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.Watcher.Event.EventType;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooKeeper;

/**
 * Java clients while an ensemble has lost its quorum and when it has found it again. Prints "lose" and "find" when it
 * wants that, and goes on when a line comes on standard input. Ends with status 0 when everything was as it must be.
 */
public final class ReadOnly {
    private static final int LONG_MS = 60_000;
    private static final int WAIT_S = 60;

    /** A client and the states that it was told, but for those passed over while another was waited for. */
    private static final class Teller implements Watcher {
        final BlockingQueue<KeeperState> states = new LinkedBlockingQueue<>();
        final ZooKeeper client;

        Teller(String hosts, boolean readOnlyWillDo) throws Exception {
            client = new ZooKeeper(hosts, LONG_MS, this, readOnlyWillDo);
        }

        @Override
        public void process(WatchedEvent event) {
            if (event.getType() == EventType.None) {
                states.add(event.getState());
            }
        }

        void await(KeeperState wanted) throws InterruptedException {
            KeeperState state;
            do {
                state = states.poll(WAIT_S, TimeUnit.SECONDS);
                check(state != null, "not told " + wanted);
                check(state == wanted || state != KeeperState.Expired, "expired, waiting for " + wanted);
            } while (state != wanted);
        }

        // What another client was told is there may come later to this one's server.
        String syncAndRead(String path) throws Exception {
            client.sync(path, (code, synced, context) -> { }, null);
            return read(path);
        }

        String read(String path) throws Exception {
            return new String(client.getData(path, false, null), StandardCharsets.UTF_8);
        }

        void create(String path, CreateMode mode) throws Exception {
            client.create(path, "data".getBytes(StandardCharsets.UTF_8), Ids.OPEN_ACL_UNSAFE, mode);
        }
    }

    private static void check(boolean holds, String otherwise) {
        if (!holds) {
            throw new AssertionError(otherwise);
        }
    }

    private static void ask(String what) throws Exception {
        System.out.println(what);
        System.out.flush();
        check(System.in.read() >= 0, "nobody answers");
    }

    public static void main(String[] args) throws Exception {
        String hosts = args[0];
        Teller global = new Teller(hosts, true);
        global.await(KeeperState.SyncConnected);
        global.create("/java", CreateMode.PERSISTENT);
        // An ephemeral makes its session known to all.
        global.create("/java/ephemeral", CreateMode.EPHEMERAL);
        long globalId = global.client.getSessionId();
        Teller local = new Teller(hosts, true);
        local.await(KeeperState.SyncConnected);
        check("data".equals(local.syncAndRead("/java")), "data");

        ask("lose");
        local.await(KeeperState.Expired);
        Teller readOnly = new Teller(hosts, true);
        readOnly.await(KeeperState.ConnectedReadOnly);
        check(readOnly.client.getState() == ZooKeeper.States.CONNECTEDREADONLY, "state");
        long readOnlyId = readOnly.client.getSessionId();
        check("data".equals(readOnly.read("/java")), "data without a quorum");
        try {
            readOnly.create("/java/no", CreateMode.PERSISTENT);
            check(false, "a write without a quorum");
        } catch (KeeperException.NotReadOnlyException expected) {
            // As it must be.
        }
        Teller writing = new Teller(hosts, false);
        KeeperState told = writing.states.poll(3, TimeUnit.SECONDS);
        check(told == null || told == KeeperState.Disconnected, "a client that wants to write: " + told);
        check(global.client.getState() == ZooKeeper.States.CONNECTING, "a session that all know waits");

        ask("find");
        global.await(KeeperState.SyncConnected);
        check(global.client.getSessionId() == globalId, "the same session");
        check(global.client.exists("/java/ephemeral", false) != null, "its ephemeral");
        readOnly.await(KeeperState.SyncConnected);
        check(readOnly.client.getSessionId() != readOnlyId, "a session of the quorum");
        readOnly.create("/java/yes", CreateMode.EPHEMERAL);
        writing.await(KeeperState.SyncConnected);
        check("data".equals(writing.syncAndRead("/java/yes")), "data with a quorum");
        for (Teller teller : new Teller[] {global, readOnly, writing}) {
            teller.client.close();
        }
        System.out.println("the Java client is content");
    }
}
