# Prints numbered lines and waits. Who ends its sleep lets it fill a /tmp that is memory, with all that the container may have.
resource "terraform_data" "printing" {
  provisioner "local-exec" {
    command = "seq --format='line %.0f of @LINES@' @LINES@; sleep 600; head -c 4G /dev/zero > /tmp/filled"
  }
}
