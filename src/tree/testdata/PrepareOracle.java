package org.apache.zookeeper.server;

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.jute.BinaryOutputArchive;
import org.apache.jute.Record;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.MultiResponse;
import org.apache.zookeeper.OpResult;
import org.apache.zookeeper.ZooDefs.OpCode;
import org.apache.zookeeper.data.Id;
import org.apache.zookeeper.data.Stat;
import org.apache.zookeeper.proto.Create2Response;
import org.apache.zookeeper.proto.CreateResponse;
import org.apache.zookeeper.proto.SetACLResponse;
import org.apache.zookeeper.proto.SetDataResponse;

/**
 * Runs scripted requests through Apache's own PrepRequestProcessor and DataTree. Each line of the script
 * is printed as it came, and after an "A" what became of each request that waited for it:
 *
 *   R session state cxid identities op body    a request; its body in hex, or "-" for none
 *   A                                          apply what has been prepared
 *   T record error reply digest                the transaction (header and body), the code of the
 *                                              reply, its body, and the tree's digest afterwards
 *
 * To renew testdata/prepare_plain.txt with ZooKeeper 3.8 (its jars and their dependencies in $CP):
 *
 *   RINGKEEPER_PREPARE_SCRIPT=plain,450,1,/tmp/script \
 *       cargo test -p ringkeeper-tree --test apache_prepare -- --ignored writes_a_script
 *   javac -cp $CP -d /tmp/oracle src/tree/testdata/PrepareOracle.java
 *   java -cp $CP:/tmp/oracle org.apache.zookeeper.server.PrepareOracle $(mktemp -d) \
 *       < /tmp/script > src/tree/testdata/prepare_plain.txt
 *
 * The script "extended" needs -Dzookeeper.extendedTypesEnabled=true, "quota" needs
 * -Dzookeeper.enforceQuota=true.
 */
public class PrepareOracle {
    static final List<List<Id>> IDENTITIES = Arrays.asList(
        Arrays.asList(new Id("ip", "10.0.0.1")),
        Arrays.asList(new Id("ip", "10.0.0.1"), new Id("digest", "u:h")),
        Arrays.asList(new Id("ip", "10.0.0.2"), new Id("digest", "v:i"), new Id("digest", "w:j")),
        Arrays.asList(new Id("ip", "10.0.0.1"), new Id("super", "")));

    public static void main(String[] args) throws Exception {
        PrintStream out = System.out;
        File dir = new File(args[0]);
        ZooKeeperServer zks = new ZooKeeperServer(dir, dir, 3000);
        zks.startdata();
        Tracker tracker = new Tracker();
        zks.sessionTracker = tracker;
        List<Request> prepared = new ArrayList<>();
        RequestProcessor next = new RequestProcessor() {
            public void processRequest(Request request) { prepared.add(request); }
            public void shutdown() { }
        };
        PrepRequestProcessor prep = new PrepRequestProcessor(zks, next);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null; ) {
            out.println(line);
            String[] words = line.split(" ");
            if (words[0].equals("A")) {
                for (Request request : prepared) {
                    out.println(apply(zks, request));
                }
                prepared.clear();
                zks.outstandingChanges.clear();
                zks.outstandingChangesForPath.clear();
                continue;
            }
            tracker.state = words[2];
            ByteBuffer body = words[6].equals("-") ? ByteBuffer.allocate(0) : ByteBuffer.wrap(bytes(words[6]));
            Request request = new Request(null, Long.parseLong(words[1]), Integer.parseInt(words[3]),
                Integer.parseInt(words[5]), body, IDENTITIES.get(Integer.parseInt(words[4])));
            prep.pRequest(request);
        }
        out.flush();
    }

    static String apply(ZooKeeperServer zks, Request request) throws Exception {
        ByteArrayOutputStream record = new ByteArrayOutputStream();
        BinaryOutputArchive archive = BinaryOutputArchive.getArchive(record);
        request.getHdr().serialize(archive, "hdr");
        if (request.getTxn() != null) {
            request.getTxn().serialize(archive, "txn");
        }
        DataTree.ProcessTxnResult result =
            zks.getZKDatabase().processTxn(request.getHdr(), request.getTxn(), null);
        int error = 0;
        if (request.getHdr().getType() == OpCode.error) {
            error = request.getException() != null
                ? request.getException().code().intValue()
                : ((org.apache.zookeeper.txn.ErrorTxn) request.getTxn()).getErr();
        } else if (request.getException() instanceof KeeperException.SessionMovedException) {
            error = KeeperException.Code.SESSIONMOVED.intValue();
        }
        ByteArrayOutputStream reply = new ByteArrayOutputStream();
        Record response = error == 0 ? response(request, result) : null;
        if (response != null) {
            response.serialize(BinaryOutputArchive.getArchive(reply), "response");
        }
        return "T " + hex(record.toByteArray()) + " " + error + " " + hex(reply.toByteArray()) + " "
            + Long.toUnsignedString(zks.getZKDatabase().getDataTree().getTreeDigest());
    }

    static Record response(Request request, DataTree.ProcessTxnResult result) throws Exception {
        switch (request.type) {
            case OpCode.create: return new CreateResponse(result.path);
            case OpCode.create2:
            case OpCode.createTTL:
            case OpCode.createContainer: return new Create2Response(result.path, result.stat);
            case OpCode.setData: return new SetDataResponse(result.stat);
            case OpCode.setACL: return new SetACLResponse(result.stat);
            case OpCode.multi:
                MultiResponse multi = new MultiResponse();
                for (DataTree.ProcessTxnResult sub : result.multiResult) {
                    multi.add(part(sub));
                }
                return multi;
            default: return null;
        }
    }

    static OpResult part(DataTree.ProcessTxnResult sub) {
        switch (sub.type) {
            case OpCode.check: return new OpResult.CheckResult();
            case OpCode.create: return new OpResult.CreateResult(sub.path);
            case OpCode.create2:
            case OpCode.createTTL:
            case OpCode.createContainer: return new OpResult.CreateResult(sub.path, sub.stat);
            case OpCode.delete: return new OpResult.DeleteResult();
            case OpCode.setData: return new OpResult.SetDataResult(sub.stat);
            case OpCode.error: return new OpResult.ErrorResult(sub.err);
            default: throw new IllegalStateException("type " + sub.type);
        }
    }

    static byte[] bytes(String hex) {
        byte[] bytes = new byte[hex.length() / 2];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        return bytes;
    }

    static String hex(byte[] bytes) {
        StringBuilder hex = new StringBuilder();
        for (byte b : bytes) {
            hex.append(String.format("%02x", b));
        }
        return hex.length() == 0 ? "-" : hex.toString();
    }

    static class Tracker implements SessionTracker {
        String state = "live";
        public void checkSession(long id, Object owner) throws KeeperException.SessionExpiredException,
                KeeperException.SessionMovedException, KeeperException.UnknownSessionException {
            switch (state) {
                case "closing": throw new KeeperException.SessionExpiredException();
                case "unknown": throw new KeeperException.UnknownSessionException();
                case "moved": throw new KeeperException.SessionMovedException();
                default:
            }
        }
        public void checkGlobalSession(long id, Object owner) throws KeeperException.SessionExpiredException,
                KeeperException.SessionMovedException {
            try {
                checkSession(id, owner);
            } catch (KeeperException.UnknownSessionException e) {
                throw new KeeperException.SessionExpiredException();
            }
        }
        public long createSession(int timeout) { return 0; }
        public boolean trackSession(long id, int timeout) { return true; }
        public boolean commitSession(long id, int timeout) { return true; }
        public boolean touchSession(long id, int timeout) { return true; }
        public void setSessionClosing(long id) { }
        public void shutdown() { }
        public void removeSession(long id) { }
        public boolean isTrackingSession(long id) { return true; }
        public void setOwner(long id, Object owner) { }
        public void dumpSessions(PrintWriter writer) { }
        public Map<Long, Set<Long>> getSessionExpiryMap() { return Collections.emptyMap(); }
        public long getLocalSessionCount() { return 0; }
        public boolean isLocalSessionsEnabled() { return false; }
        public Set<Long> globalSessions() { return Collections.emptySet(); }
        public Set<Long> localSessions() { return Collections.emptySet(); }
    }
}
