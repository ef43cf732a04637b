//! What is noted of Redis' stream of commands: who writes, when that changes, and what becomes of the stored epoch.

use super::line::{Command, Words};
use crate::history::RedisAct;

/// Commands by which scripts only look. All others count as writes: one that is missing here shows.
const LOOKS: [&str; 16] = [
    "EXISTS",
    "GET",
    "HGET",
    "HGETALL",
    "HLEN",
    "HMGET",
    "HVALS",
    "INFO",
    "TIME",
    "TYPE",
    "ZCARD",
    "ZCOUNT",
    "ZMSCORE",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZSCORE",
];

/// What the harness says in the stream of commands, of something that does not show there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// From here on Redis may throw keys away.
    EvictionBegins,
    /// It does so no longer.
    EvictionEnds,
}

/// Follows the stream.
///
/// Noted is the first write after another epoch's, or after anything else that is noted, how many there were when that
/// is over, and each write by an epoch below the highest one. So a run has some lines, not some hundred thousand.
pub(super) struct Observer {
    epoch_key: String,
    /// The script under way.
    script: Option<Script>,
    /// The epoch that writes, and how many of its scripts have.
    writing: Option<(Option<i64>, u64)>,
    highest: Option<i64>,
}

struct Script {
    /// The beginning of its hash.
    name: String,
    /// `None` if it was given none.
    epoch: Option<i64>,
    /// Whether it has come to any command.
    has_begun: bool,
    has_written: bool,
}

impl Mark {
    /// The command that says it; it does nothing else.
    pub fn command(self) -> String {
        format!("ECHO {}", self.word())
    }

    fn word(self) -> &'static str {
        match self {
            Self::EvictionBegins => "chaos-eviction-begins",
            Self::EvictionEnds => "chaos-eviction-ends",
        }
    }
}

impl Observer {
    /// The epoch is stored under this key.
    pub fn new(epoch_key: String) -> Self {
        Self { epoch_key, script: None, writing: None, highest: None }
    }

    /// Takes a line, and answers what is to be noted.
    pub fn line(&mut self, line: &[u8]) -> Vec<RedisAct> {
        let Some(Command { by_script, mut words }) = Command::parse(line) else { return Vec::new() };
        let Some(name) = words.next() else { return Vec::new() };
        let name = name.to_ascii_uppercase();
        if by_script {
            return self.called(name, words);
        }
        self.script = None;
        match name.as_str() {
            "EVALSHA" | "EVAL" => {
                self.script = self.script(words);
                Vec::new()
            }
            "FLUSHALL" | "FLUSHDB" => self.note(RedisAct::EpochGone { how: name }),
            "DEL" | "UNLINK" if words.any(|key| key == self.epoch_key) => {
                self.note(RedisAct::EpochGone { how: name })
            }
            "SET" if words.next().as_ref() == Some(&self.epoch_key) => {
                self.note(RedisAct::EpochForged { value: words.next().unwrap_or_default() })
            }
            "ECHO" => {
                let word = words.next();
                let is = |mark: Mark| word.as_deref() == Some(mark.word());
                let begins = is(Mark::EvictionBegins);
                if begins || is(Mark::EvictionEnds) {
                    self.note(RedisAct::Evicts { begins })
                } else {
                    Vec::new()
                }
            }
            _ => Vec::new(),
        }
    }

    /// What was to be noted of the last one that wrote: the stream has ended.
    pub fn end(&mut self) -> Vec<RedisAct> {
        self.script = None;
        let wrote = self.writing.take().map(|(epoch, scripts)| RedisAct::Wrote { epoch, scripts });
        wrote.into_iter().collect()
    }

    fn note(&mut self, act: RedisAct) -> Vec<RedisAct> {
        let mut noted = self.end();
        noted.push(act);
        noted
    }

    /// The hash or text, the number of keys, the keys, the arguments: of ours the epoch's key comes first, and the
    /// epoch.
    fn script(&self, mut words: Words<'_>) -> Option<Script> {
        let name = words.next()?.chars().take(8).collect();
        let keys: usize = words.next()?.parse().ok()?;
        let has_epoch = keys > 0 && words.next()? == self.epoch_key;
        let epoch = if has_epoch { words.nth(keys - 1).and_then(|epoch| epoch.parse().ok()) } else { None };
        Some(Script { name, epoch, has_begun: false, has_written: false })
    }

    /// A command that the script under way has come to.
    fn called(&mut self, command: String, mut words: Words<'_>) -> Vec<RedisAct> {
        let Some(script) = &mut self.script else { return Vec::new() };
        let is_first = !std::mem::replace(&mut script.has_begun, true);
        // What has no leader's epoch may throw away keys that nobody could use.
        let is_look = LOOKS.contains(&command.as_str()) || (script.epoch == Some(0) && command == "DEL");
        if is_look || std::mem::replace(&mut script.has_written, true) {
            return Vec::new();
        }
        let epoch = script.epoch;
        let is_below = epoch < self.highest;
        self.highest = self.highest.max(epoch);
        if let Some((writing, scripts)) = &mut self.writing
            && *writing == epoch
        {
            *scripts += 1;
            if !is_below {
                return Vec::new();
            }
        }
        let resets = is_first && command == "SET" && words.next().as_ref() == Some(&self.epoch_key);
        let act = RedisAct::Writes { epoch, script: script.name.clone(), command, resets };
        if self.writing.is_some_and(|(writing, _)| writing == epoch) {
            return vec![act];
        }
        let wrote = self.writing.replace((epoch, 1));
        let wrote = wrote.map(|(epoch, scripts)| RedisAct::Wrote { epoch, scripts });
        wrote.into_iter().chain([act]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "q:{q}:epoch";

    /// Lines of a script with this epoch, which comes to these commands.
    fn script(epoch: &str, commands: &[&str]) -> Vec<String> {
        let keys = format!(r#""{KEY}" "q:{{q}}:generation""#);
        let first = format!(r#"1.5 [0 127.0.0.1:9] "EVALSHA" "0123456789abcdef" "2" {keys} "{epoch}" "q:""#);
        let quoted =
            |command: &&str| command.split(' ').map(|word| format!(r#" "{word}""#)).collect::<String>();
        let called = commands.iter().map(|command| format!("1.5 [0 lua]{}", quoted(command)));
        std::iter::once(first).chain(called).collect()
    }

    fn client(command: &str) -> Vec<String> {
        let quoted: String = command.split(' ').map(|word| format!(r#" "{word}""#)).collect();
        vec![format!("1.5 [0 127.0.0.1:9]{quoted}")]
    }

    fn noted(lines: &[Vec<String>]) -> Vec<RedisAct> {
        let mut observer = Observer::new(KEY.to_owned());
        let mut acts: Vec<_> =
            lines.iter().flatten().flat_map(|line| observer.line(line.as_bytes())).collect();
        acts.extend(observer.end());
        acts
    }

    fn writes(epoch: i64, command: &str) -> RedisAct {
        let (script, command) = ("01234567".to_owned(), command.to_owned());
        RedisAct::Writes { epoch: Some(epoch), script, command, resets: false }
    }

    fn wrote(epoch: i64, scripts: u64) -> RedisAct {
        RedisAct::Wrote { epoch: Some(epoch), scripts }
    }

    #[test]
    fn the_first_write_of_an_epoch_and_their_number_are_noted() {
        let get = format!("GET {KEY}");
        let one = script("3", &[&get, "HDEL c a", "ZADD s 1 a"]);
        let next = script("9", &[&get, &format!("DEL {KEY}"), &format!("SET {KEY} 9")]);
        let acts = noted(&[one.clone(), one, next]);
        assert_eq!(acts, [writes(3, "HDEL"), wrote(3, 2), writes(9, "DEL"), wrote(9, 1)]);
    }

    #[test]
    fn a_script_that_only_looks_is_not_noted() {
        let get = format!("GET {KEY}");
        assert_eq!(noted(&[script("3", &[&get]), script("0", &["ZRANGE s 0 -1", "HLEN c"])]), []);
        assert_eq!(
            noted(&[script("3", &[]), client("ZADD s 1 a")]),
            [],
            "a client's own write is no script's"
        );
    }

    #[test]
    fn every_write_by_an_epoch_below_the_highest_is_noted() {
        let (old, new) = (script("3", &["ZADD s 1 a"]), script("9", &["ZREM s a"]));
        let acts = noted(&[new, old.clone(), old]);
        assert_eq!(acts, [writes(9, "ZREM"), wrote(9, 1), writes(3, "ZADD"), writes(3, "ZADD"), wrote(3, 2)]);
    }

    #[test]
    fn a_script_without_a_leaders_epoch_may_only_throw_away() {
        assert_eq!(noted(&[script("0", &["TYPE k", "DEL k"])]), []);
        assert_eq!(noted(&[script("0", &["ZADD k 1 a"])]), [writes(0, "ZADD"), wrote(0, 1)]);
        let act = &noted(&[script("none", &["DEL k"])])[0];
        assert!(matches!(act, RedisAct::Writes { epoch: None, .. }), "{act:?}");
        let strange = vec![r#"1.5 [0 127.0.0.1:9] "EVAL" "return 1" "0" "9""#.to_owned()];
        let act = &noted(&[[strange, vec![r#"1.5 [0 lua] "SET" "k" "1""#.to_owned()]].concat()])[0];
        assert!(matches!(act, RedisAct::Writes { epoch: None, .. }), "{act:?}");
    }

    #[test]
    fn an_epoch_that_is_set_without_a_look_at_the_stored_one_is_told_from_the_fences() {
        let resets = |commands: &[&str]| match &noted(&[script("3", commands)])[0] {
            RedisAct::Writes { resets, .. } => *resets,
            other => panic!("{other:?}"),
        };
        let (get, set) = (format!("GET {KEY}"), format!("SET {KEY} 3"));
        assert!(resets(&[&set, "DEL g"]));
        assert!(!resets(&[&get, &set]));
        assert!(!resets(&["SET g 3"]));
    }

    #[test]
    fn what_clients_do_to_the_stored_epoch_is_noted_and_the_next_write_with_it() {
        let write = script("3", &["ZADD s 1 a"]);
        let gone = |how: &str| RedisAct::EpochGone { how: how.to_owned() };
        let (first, last) = (writes(3, "ZADD"), wrote(3, 1));
        for (command, act) in [
            ("FLUSHALL".to_owned(), gone("FLUSHALL")),
            (format!("del other {KEY}"), gone("DEL")),
            (format!("SET {KEY} 1000"), RedisAct::EpochForged { value: "1000".to_owned() }),
            (Mark::EvictionBegins.command(), RedisAct::Evicts { begins: true }),
            (Mark::EvictionEnds.command(), RedisAct::Evicts { begins: false }),
        ] {
            let acts = noted(&[write.clone(), client(&command), write.clone()]);
            assert_eq!(acts, [first.clone(), last.clone(), act, first.clone(), last.clone()], "{command}");
        }
        for command in ["DEL other", "SET other 1", "ECHO hello", "GET k"] {
            assert_eq!(noted(&[write.clone(), client(command)]), [first.clone(), last.clone()], "{command}");
        }
    }

    #[test]
    fn what_scripts_look_by_are_known_commands() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/ready_queue/scripts");
        let known = ["DEL", "HDEL", "HINCRBY", "HSET", "SET", "ZADD", "ZREM", "ZREMRANGEBYRANK"];
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for called in text.split("call('").skip(1).chain(text.split("in_slices('").skip(1)) {
                let command = called.split('\'').next().unwrap();
                assert!(LOOKS.contains(&command) != known.contains(&command), "{command}");
            }
        }
    }
}
