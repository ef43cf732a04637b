//! `cortex token`.

use std::process::ExitCode;

use super::args::{IssueArgs, TokenCommand};
use super::output::{CommandError, finish, print_line};
use crate::domain::ambient::{Ambient, System};
use crate::security::{Issuer, NewToken};

/// Runs one of the commands.
pub fn run(command: TokenCommand) -> ExitCode {
    match command {
        TokenCommand::Issue(args) => finish(issue(args)),
    }
}

/// Prints a token and nothing else, so that `$(cortex token issue ...)` is one.
fn issue(args: IssueArgs) -> Result<(), CommandError> {
    let file = args.key.display();
    let pem = std::fs::read_to_string(&args.key)
        .map_err(|error| CommandError::Usage(format!("cannot read {file}: {error}")))?;
    let failed = |error| CommandError::Usage(format!("{file} cannot be used: {error}"));
    let issuer = Issuer::from_pem(&pem).map_err(failed)?;
    let token = NewToken {
        subject: args.subject,
        role: args.role,
        ttl: args.ttl,
        issuer: args.issuer,
        audience: args.audience,
    };
    print_line(&issuer.issue(&token, System.now()).map_err(failed)?)
}
