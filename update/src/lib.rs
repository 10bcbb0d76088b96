//! What an update is made of, apart from files, network and time: the host's builder publishes it, the guest's agent applies it.
