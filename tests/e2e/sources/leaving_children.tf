# The command returns at once; what it started would go on.
resource "terraform_data" "leaving" {
  provisioner "local-exec" {
    command = "setsid sleep 700 > /dev/null 2>&1 < /dev/null & sleep 701 > /dev/null 2>&1 < /dev/null & sleep 0.3"
  }
}
