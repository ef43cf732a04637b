//! Takes a line of `MONITOR` apart: `1795680350.446150 [0 lua] "SET" "key" "a\"b"`.

/// A command as `MONITOR` shows it. Its words are taken apart when they are asked for: a script may have thousands.
pub(super) struct Command<'a> {
    /// Whether a script called it. Such lines follow that of the script, without any other between them.
    pub by_script: bool,
    /// The words.
    pub words: Words<'a>,
}

/// The words of a command, the name first.
pub(super) struct Words<'a>(&'a [u8]);

impl<'a> Command<'a> {
    /// `None` for what is no command.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let from = line.iter().position(|byte| *byte == b'[')?;
        let client = &line[from..];
        // An address may have brackets of its own.
        let to = client.windows(3).position(|bytes| bytes == b"] \"")?;
        Some(Self { by_script: client[..to].ends_with(b" lua"), words: Words(&client[to + 2..]) })
    }
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut rest = self.0.iter().copied().enumerate().skip_while(|(_, byte)| *byte == b' ');
        if rest.next()?.1 != b'"' {
            return None;
        }
        let mut word = Vec::new();
        while let Some((at, byte)) = rest.next() {
            match byte {
                b'"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(String::from_utf8_lossy(&word).into_owned());
                }
                b'\\' => word.push(match rest.next()?.1 {
                    b'x' => 16 * digit(rest.next()?.1)? + digit(rest.next()?.1)?,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'a' => 7,
                    b'b' => 8,
                    itself => itself,
                }),
                other => word.push(other),
            }
        }
        None
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        Command::parse(line.as_bytes()).unwrap().words.collect()
    }

    #[test]
    fn a_command_is_taken_apart() {
        let line = r#"1795680350.457126 [0 127.0.0.1:47110] "SET" "q:{q}:epoch" "7""#;
        assert_eq!(words(line), ["SET", "q:{q}:epoch", "7"]);
        assert_eq!(words(r#"1.5 [0 127.0.0.1:1] "FLUSHALL""#), ["FLUSHALL"]);
    }

    #[test]
    fn it_is_told_who_called() {
        let is_scripts = |line: &str| Command::parse(line.as_bytes()).unwrap().by_script;
        assert!(is_scripts(r#"1.5 [0 lua] "GET" "k""#));
        assert!(!is_scripts(r#"1.5 [0 127.0.0.1:47110] "GET" "[0 lua] \"x\"""#));
        assert!(!is_scripts(r#"1.5 [0 [::1]:47110] "GET" "k""#));
        assert!(!is_scripts(r#"1.5 [0 unix:/tmp/redis.sock] "GET" "k""#));
    }

    #[test]
    fn what_was_escaped_is_what_it_was() {
        assert_eq!(
            words(r#"1.5 [0 lua] "a\"b\\" "" "c d\n\t\x01" "\xc3\xa4""#),
            ["a\"b\\", "", "c d\n\t\u{1}", "ä"]
        );
    }

    #[test]
    fn what_is_no_command_is_none() {
        for line in ["", "OK", "+OK", "$579", "1795680350.457126 [0 127.0.0.1:47110]", "-ERR [x] y"] {
            assert!(Command::parse(line.as_bytes()).is_none(), "{line}");
        }
        // Cut off in the middle of a word, of a character.
        assert_eq!(words(r#"1.5 [0 lua] "GET" "ke"#), ["GET"]);
        assert_eq!(words(r#"1.5 [0 lua] "GET" "k\x"#), ["GET"]);
    }
}
