//! `apiclient` in the guest.

use apiserver::client::Endpoint;
use std::process::ExitCode;

fn main() -> ExitCode {
    apiserver::cli::run(std::env::args_os(), &Endpoint::Unix("/run/api.sock".into()))
}
