// Prints random inputs and what java.util.Properties makes of them, as testdata/properties.txt has it:
//
//   java src/config/testdata/PropertiesOracle.java 1 500 > src/config/testdata/properties.txt
//
// The arguments are a seed and a count. A line is the input in hexadecimal, then key=value; for each setting in hexadecimal
// UTF-16, or ERR where Java refuses the input. Inputs that end in a line with nothing but a backslash are left out: Java makes
// an empty setting of that line.

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Properties;

public class PropertiesOracle {
    private static final byte[] ALPHABET = "aab=: \t\\\\\n\r#!u0041f\f\u00e4".getBytes(StandardCharsets.ISO_8859_1);
    private static final int LENGTH = 28;

    public static void main(String[] arguments) throws IOException {
        long state = Long.parseLong(arguments[0]);
        int count = Integer.parseInt(arguments[1]);
        while (count > 0) {
            byte[] input = new byte[LENGTH];
            for (int i = 0; i < LENGTH; i++) {
                state = state * 6364136223846793005L + 1;
                input[i] = ALPHABET[(int) ((state >>> 40) % ALPHABET.length)];
            }
            String settings = read(input);
            if (!settings.endsWith(";=;") && !settings.equals("=;")) {
                System.out.println(hexadecimal(new String(input, StandardCharsets.ISO_8859_1), 2) + " " + settings);
                count--;
            }
        }
    }

    private static String read(byte[] input) throws IOException {
        StringBuilder settings = new StringBuilder();
        Properties properties = new Properties() {
            @Override
            public synchronized Object put(Object key, Object value) {
                settings.append(hexadecimal((String) key, 4)).append('=').append(hexadecimal((String) value, 4)).append(';');
                return super.put(key, value);
            }
        };
        try {
            properties.load(new ByteArrayInputStream(input));
            return settings.toString();
        } catch (IllegalArgumentException malformed) {
            return "ERR";
        }
    }

    private static String hexadecimal(String text, int digits) {
        StringBuilder result = new StringBuilder();
        text.chars().forEach(unit -> result.append(String.format("%0" + digits + "x", unit)));
        return result.toString();
    }
}
